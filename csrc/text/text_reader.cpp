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

std::optional<std::size_t> TextReader::first_pause(TextState& text, std::span<const Token> guesses,
                                                   bool asked) const {
  const ReadingState before = text;
  const LoopGuard loops = text.loops;
  const std::int32_t cut_bytes = text.cut_bytes, unread_from = text.unread_from;
  const std::int32_t length = text.length();
  std::optional<std::size_t> pause;
  for (std::size_t i = 0; i < guesses.size() && !pause; ++i) {
    const Outcome outcome = append(text, guesses[i]);
    if (outcome.end != Finish::none || text.must_stop_thinking() || (asked && outcome.boundary))
      pause = i + 1;
  }
  static_cast<ReadingState&>(text) = before;
  text.loops = loops;
  text.cut_bytes = cut_bytes, text.unread_from = unread_from;
  text.tokens.resize(length);
  return pause;
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
    static_cast<ReadingState&>(text) = first_taken.opened;
  else
    read_step_again(text);
  text.cut_bytes = 0;
  text.loops.rewind(text.written());
  if (text.unread_from >= length) text.unread_from = -1;
  while (!text.forced.empty() && text.forced.back() >= length) text.forced.pop_back();
  return first_taken;
}

// The open step is read from where it began, as when it was written: what stops a text had to be
// ignored, or the text would have ended there.
void TextReader::read_step_again(TextState& text) const {
  const Step& open = text.steps.back();
  static_cast<ReadingState&>(text) = open.opened;
  for (std::int32_t end = open.start + 1; end <= text.length(); ++end) {
    const auto written = text.first(end).subspan(text.request.prompt.size());
    detectors_[text.request.vocabulary].feed(text.cursor, written.back());
    match_stop(text, written.back(), true);
    if (text.thinking) text.thinking = !ends_thinking(text, written);
  }
}

}  // namespace steer
