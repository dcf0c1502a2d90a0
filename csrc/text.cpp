// The effects of a token on the text: delimiters, stops, thinking, loops, trials.
#include <algorithm>

#include "scheduler.h"

namespace steer {

void Scheduler::append(Sequence& sequence, Token token) {
  sequence.tokens.push_back(token);
  forecast_.wrote(sequence.active);
  const Outcome outcome = read(sequence, token);
  if (sequence.trial_from >= 0)
    try_on(sequence, outcome);
  else
    conclude(sequence, outcome);
}

// Reads the text's last token: delimiters, stops, thinking, loops.
Outcome Scheduler::read(Sequence& sequence, Token token) {
  const Request& request = sequence.request;
  const std::span text(sequence.tokens);
  const auto written = text.subspan(request.prompt.size());
  const bool delimited = detector(sequence).feed(sequence.cursor, token);
  const bool loop = sequence.loops.feed(written);
  const bool thought = sequence.thinking && ends_thinking(sequence, written);
  if (thought) sequence.thinking = false, sequence.unread_from = -1;
  // A shadow reads before its first step.
  const std::int32_t opened =
      sequence.steps.empty() ? sequence.prompt_length() : sequence.steps.back().start;
  const std::int32_t step = sequence.length() - opened;
  const bool too_long = request.max_step_tokens > 0 && step >= request.max_step_tokens;
  Outcome outcome{Finish::none, delimited || too_long || thought};
  if (stops_at(sequence, token))
    outcome.end = Finish::stop;  // a stop beats a delimiter in the same token
  else if (loop)
    outcome.end = Finish::repetition;
  else if (sequence.generated() >= request.max_tokens)
    outcome.end = Finish::length;
  return outcome;
}

// A token on trial: nothing settles, and the decide event comes where the trial ends.
void Scheduler::try_on(Sequence& sequence, Outcome outcome) {
  if (sequence.request.trial_tokens == kWholeAnswer) {
    if (outcome.end == Finish::none && must_stop_thinking(sequence))
      outcome = end_thinking(sequence);
    if (outcome.end == Finish::none) {
      if (outcome.boundary) open_step(sequence);
      return;
    }
  } else if (outcome.end == Finish::none && !outcome.boundary && !must_stop_thinking(sequence) &&
             sequence.length() - sequence.trial_from < sequence.request.trial_tokens) {
    return;
  }
  sequence.trial = outcome;
  sequence.awaits_route = true;
  report(EventKind::decide, sequence);
}

void Scheduler::conclude(Sequence& sequence, Outcome outcome) {
  if (outcome.end == Finish::none && must_stop_thinking(sequence)) outcome = end_thinking(sequence);
  if (sequence.request.settle_at_once && outcome.end != Finish::stop) settle_open(sequence);
  if (outcome.end != Finish::none)
    ask_at_end(sequence, outcome.end);
  else if (outcome.boundary)
    reach_boundary(sequence);
}

// Ends the text, or asks the caller whether the end stands.
void Scheduler::ask_at_end(Sequence& sequence, Finish reason) {
  const int reader = sequence.request.reader;
  if (!sequence.request.ask_at_end || reader == kNobody || reader == sequence.active)
    return end(sequence, reason);
  sequence.closing = reason;
  sequence.active = reader;
  sequence.awaits_route = false;
  sequence.reading = true;
}

bool Scheduler::must_stop_thinking(const Sequence& sequence) const {
  const std::int32_t limit = sequence.request.max_think_tokens;
  return sequence.thinking && limit > 0 && sequence.generated() >= limit;
}

// The search for the text that ends the thinking part; none if there is none, or if one of its
// tokens has no text.
std::shared_ptr<const Automaton> Scheduler::think_marker(const Request& request) const {
  std::string marker;
  for (const Token token : request.think_end) {
    const std::string& text = detectors_[request.vocabulary].text(token);
    if (text.empty()) return nullptr;  // a special token: its id says more than its text
    marker += text;
  }
  if (!request.thinks()) return nullptr;
  return std::make_shared<const Automaton>(std::vector{std::move(marker)});
}

// Does the thinking part end in the last token of what is written?
bool Scheduler::ends_thinking(Sequence& sequence, std::span<const Token> written) const {
  const auto& ids = sequence.request.think_end;
  if (!sequence.think_marker)
    return written.size() >= ids.size() && std::ranges::equal(written.last(ids.size()), ids);
  for (const unsigned char byte : detector(sequence).text(written.back())) {
    sequence.think_node = sequence.think_marker->next(sequence.think_node, byte);
    if (sequence.think_marker->match(sequence.think_node) > 0) return true;
  }
  return false;
}

// Writes the tokens that end the thinking part, until it has ended: the text before may already
// hold the first of them. Boundaries within them do not count.
Outcome Scheduler::end_thinking(Sequence& sequence) {
  Outcome outcome;
  for (const Token token : sequence.request.think_end) {
    sequence.forced.push_back(sequence.length());
    sequence.tokens.push_back(token);
    outcome = read(sequence, token);
    if (outcome.end != Finish::none || !sequence.thinking) break;
  }
  return outcome;
}

// Does the text end with the token that was just appended? Not before `min_tokens`. The stop string
// is cut from the text.
bool Scheduler::stops_at(Sequence& sequence, Token token) {
  const bool early = sequence.generated() <= sequence.request.min_tokens;
  if (match_stop(sequence, token, early)) return true;
  const auto& ids = sequence.request.stop_ids;
  if (early || std::find(ids.begin(), ids.end(), token) == ids.end()) return false;
  sequence.cut_bytes = static_cast<std::int32_t>(detector(sequence).text(token).size());
  return true;
}

// Moves the search for stop strings over a token. The first match counts, unless matches are to be
// ignored; the rest of the token is cut with it.
bool Scheduler::match_stop(Sequence& sequence, Token token, bool ignored) const {
  if (!sequence.stops) return false;
  const std::string& text = detector(sequence).text(token);
  for (std::size_t i = 0; i < text.size(); ++i) {
    sequence.stop_node = sequence.stops->next(sequence.stop_node, text[i]);
    const std::int32_t match = sequence.stops->match(sequence.stop_node);
    if (match == 0) continue;
    sequence.stop_node = Automaton::kStart;
    if (ignored) continue;
    sequence.cut_bytes = match + static_cast<std::int32_t>(text.size() - i - 1);
    return true;
  }
  return false;
}

// Settles all but the tokens that may yet turn out to belong to a stop string.
void Scheduler::settle_open(Sequence& sequence) {
  std::int32_t end = sequence.length();
  if (sequence.stops) {
    auto open = static_cast<std::int64_t>(sequence.stops->pending(sequence.stop_node));
    for (; open > 0 && end > sequence.settled; --end)
      open -= static_cast<std::int64_t>(detector(sequence).text(sequence.tokens[end - 1]).size());
  }
  sequence.settled = std::max(sequence.settled, end);
}

// After tokens were taken back: all readers but the step detector read the text from its start.
void Scheduler::read_again(Sequence& sequence) {
  const std::int32_t prompt = sequence.prompt_length();
  const auto written = std::span(sequence.tokens).subspan(prompt);
  sequence.cut_bytes = 0;
  sequence.stop_node = Automaton::kStart;
  for (const Token token : written) match_stop(sequence, token, true);
  sequence.loops.rewind(written);
  sequence.thinking = sequence.request.thinks();
  sequence.think_node = Automaton::kStart;
  for (std::size_t n = 1; n <= written.size() && sequence.thinking; ++n)
    sequence.thinking = !ends_thinking(sequence, written.first(n));
  std::erase_if(sequence.forced, [&](std::int32_t at) { return at >= sequence.length(); });
}

}  // namespace steer
