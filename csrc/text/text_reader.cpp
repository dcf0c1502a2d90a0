#include "text/text_reader.h"

#include <algorithm>
#include <utility>

namespace steer {

TextReader::TextReader(const std::vector<std::string>& delimiters,
                       std::vector<std::string> token_bytes,
                       std::vector<std::string> large_token_bytes)
    : detectors_{StepDetector(delimiters, std::move(token_bytes)),
                 StepDetector(delimiters, std::move(large_token_bytes))} {}

TextState TextReader::begin(Request request, std::shared_ptr<const Automaton> stops) const {
  TextState text;
  text.tokens = request.prompt;
  text.settled = text.length();
  text.stops = std::move(stops);
  if (!text.stops && !request.stop_strings.empty())
    text.stops = std::make_shared<const Automaton>(request.stop_strings);
  text.thinking = request.thinks();
  text.think_marker = think_marker(request);
  text.loops = LoopGuard(request.max_repeats);
  text.request = std::move(request);
  return text;
}

Outcome TextReader::append(TextState& text, Token token) const {
  text.tokens.push_back(token);
  const Request& request = text.request;
  const auto written = text.written();
  const bool delimited = detectors_[request.vocabulary].feed(text.cursor, token);
  const bool loop = text.loops.feed(written);
  const bool thought = text.thinking && ends_thinking(text, written);
  if (thought) text.thinking = false, text.unread_from = -1;
  // A shadow reads before its first step.
  const std::int32_t opened = text.steps.empty() ? text.prompt_length() : text.steps.back().start;
  const std::int32_t step = text.length() - opened;
  const bool too_long = request.max_step_tokens > 0 && step >= request.max_step_tokens;
  Outcome outcome{Finish::none, delimited || too_long || thought};
  if (stops_at(text, token))
    outcome.end = Finish::stop;  // a stop beats a delimiter in the same token
  else if (loop)
    outcome.end = Finish::repetition;
  else if (text.generated() >= request.max_tokens)
    outcome.end = Finish::length;
  return outcome;
}

bool TextReader::pauses_after(TextState& text, std::span<const Token> guesses, bool asked) const {
  const Reading before = text;
  const std::int32_t length = text.length();
  Outcome outcome;
  for (const Token guess : guesses) outcome = append(text, guess);
  const bool pauses =
      outcome.end != Finish::none || text.must_stop_thinking() || (asked && outcome.boundary);
  static_cast<Reading&>(text) = before;
  text.tokens.resize(length);
  return pauses;
}

// The search for the text that ends the thinking part; none if there is none, or if one of its
// tokens has no text.
std::shared_ptr<const Automaton> TextReader::think_marker(const Request& request) const {
  std::string marker;
  for (const Token token : request.think_end) {
    const std::string& bytes = detectors_[request.vocabulary].text(token);
    if (bytes.empty()) return nullptr;  // a special token: its id says more than its text
    marker += bytes;
  }
  if (!request.thinks()) return nullptr;
  return std::make_shared<const Automaton>(std::vector{std::move(marker)});
}

// Does the thinking part end in the last token of what is written?
bool TextReader::ends_thinking(TextState& text, std::span<const Token> written) const {
  const auto& ids = text.request.think_end;
  if (!text.think_marker)
    return written.size() >= ids.size() && std::ranges::equal(written.last(ids.size()), ids);
  for (const unsigned char byte : bytes(text, written.back())) {
    text.think_node = text.think_marker->next(text.think_node, byte);
    if (text.think_marker->match(text.think_node) > 0) return true;
  }
  return false;
}

Outcome TextReader::end_thinking(TextState& text) const {
  Outcome outcome;
  for (const Token token : text.request.think_end) {
    text.forced.push_back(text.length());
    outcome = append(text, token);
    if (outcome.end != Finish::none || !text.thinking) break;
  }
  return outcome;
}

// Does the text end with the token that was just appended? Not before `min_tokens`. The stop string
// is cut from the text.
bool TextReader::stops_at(TextState& text, Token token) const {
  const bool early = text.generated() <= text.request.min_tokens;
  if (match_stop(text, token, early)) return true;
  const auto& ids = text.request.stop_ids;
  if (early || std::find(ids.begin(), ids.end(), token) == ids.end()) return false;
  text.cut_bytes = static_cast<std::int32_t>(bytes(text, token).size());
  return true;
}

// Moves the search for stop strings over a token. The first match counts, unless matches are to be
// ignored; the rest of the token is cut with it.
bool TextReader::match_stop(TextState& text, Token token, bool ignored) const {
  if (!text.stops) return false;
  const std::string& read = bytes(text, token);
  for (std::size_t i = 0; i < read.size(); ++i) {
    text.stop_node = text.stops->next(text.stop_node, read[i]);
    const std::int32_t match = text.stops->match(text.stop_node);
    if (match == 0) continue;
    text.stop_node = Automaton::kStart;
    if (ignored) continue;
    text.cut_bytes = match + static_cast<std::int32_t>(read.size() - i - 1);
    return true;
  }
  return false;
}

void TextReader::settle_open(TextState& text) const {
  std::int32_t end = text.length();
  if (text.stops) {
    auto open = static_cast<std::int64_t>(text.stops->pending(text.stop_node));
    for (; open > 0 && end > text.settled; --end)
      open -= static_cast<std::int64_t>(bytes(text, text.tokens[end - 1]).size());
  }
  text.settled = std::max(text.settled, end);
}

Step TextReader::cut(TextState& text, std::int32_t length) const {
  text.tokens.resize(length);
  auto& steps = text.steps;
  Step first_taken = steps.back();
  for (; !steps.empty() && steps.back().start >= length; steps.pop_back())
    first_taken = steps.back();
  if (first_taken.start == length)
    text.cursor = first_taken.cursor;
  else
    read_step_again(text);
  if (text.unread_from >= length) text.unread_from = -1;
  read_again(text);
  return first_taken;
}

// The step detector reads the open step from where it began.
void TextReader::read_step_again(TextState& text) const {
  text.cursor = text.steps.back().cursor;
  for (std::int32_t i = text.steps.back().start; i < text.length(); ++i)
    detectors_[text.request.vocabulary].feed(text.cursor, text.tokens[i]);
}

// All other readers read the text from its start.
void TextReader::read_again(TextState& text) const {
  const auto written = text.written();
  text.cut_bytes = 0;
  text.stop_node = Automaton::kStart;
  for (const Token token : written) match_stop(text, token, true);
  text.loops.rewind(written);
  text.thinking = text.request.thinks();
  text.think_node = Automaton::kStart;
  for (std::size_t n = 1; n <= written.size() && text.thinking; ++n)
    text.thinking = !ends_thinking(text, written.first(n));
  std::erase_if(text.forced, [&](std::int32_t at) { return at >= text.length(); });
}

}  // namespace steer
