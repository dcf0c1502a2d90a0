// Relayed sequences: the models have different tokens, and the text crosses at step boundaries.
//
// The sequence holds the whole text in the small model's tokens, with its steps, decisions, stops
// and limits. Its shadow holds the same text in the large model's tokens: the large model's own
// draws where it wrote, else as the caller encoded it. One of the two works at a time:
//
//   the sequence   the shadow waits, as if at a boundary without an event
//   the shadow     the sequence is `away` until the step has come back
//
// Each is active on its own model while it works and on the other model while it does not, so the
// rules of memory are those of one sequence that is handed over: KV of the one that waits is idle
// KV, and of the two the one that works is suspended.
// The shadow comes right after its sequence in the order and is never queued: if it had to be
// admitted, all running sequences could wait for shadows that wait for them. No lane runs more
// sequences because of shadows.
#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

#include "schedule/scheduler.h"

namespace steer {

Sequence* Scheduler::shadow_of(const Sequence& sequence) const {
  return sequence.shadow ? nullptr : partner_of(sequence);
}

Sequence* Scheduler::partner_of(const Sequence& sequence) const {
  if (sequence.partner == 0) return nullptr;
  const auto found = sequences_.find(sequence.partner);
  return found == sequences_.end() ? nullptr : found->second.get();
}

std::optional<SequenceId> Scheduler::shadow_of(SequenceId id) const {
  const auto found = sequences_.find(id);
  const Sequence* shadow = found == sequences_.end() ? nullptr : shadow_of(*found->second);
  return shadow == nullptr ? std::nullopt : std::optional(shadow->id);
}

SequenceId Scheduler::add_shadow(SequenceId id, std::vector<Token> prompt,
                                 std::vector<Token> stop_ids, std::vector<Token> think_end) {
  Sequence& sequence = find(id);
  if (!sequence.request.relay || sequence.phase != Phase::running || shadow_of(sequence))
    throw std::logic_error("sequence " + std::to_string(id) +
                           " must be relayed, running and without a shadow");
  if (prompt.empty() || static_cast<std::int64_t>(prompt.size()) >= longest())
    throw std::invalid_argument("the prompt has " + std::to_string(prompt.size()) +
                                " tokens for the large model, of 1 to " +
                                std::to_string(longest() - 1));
  Request request;
  request.max_tokens =
      static_cast<std::int32_t>(longest() - static_cast<std::int64_t>(prompt.size()));
  request.prompt = std::move(prompt);
  request.stop_ids = std::move(stop_ids);
  request.think_end = std::move(think_end);
  request.think_closed = sequence.request.think_closed;
  request.stop_strings = sequence.request.stop_strings;
  request.priority = sequence.request.priority;
  request.max_repeats = sequence.request.max_repeats;
  request.ahead = sequence.request.ahead;
  request.draft_tokens = sequence.request.draft_tokens;
  request.draft_source = sequence.request.draft_source;
  request.vocabulary = kLarge;
  auto shadow = std::make_unique<Sequence>(text_.begin(std::move(request), sequence.stops));
  // Other ids than those of requests: policies draw by these, so shadows must not shift them.
  shadow->id = shadow->group = sequence.partner = -id;
  shadow->partner = id;
  shadow->shadow = true;
  shadow->phase = Phase::running;
  insert_in_order(running_, shadow.get());
  ++shadows_;
  speculating_ += shadow->request.draft_tokens > 0;
  sequences_.emplace(sequence.partner, std::move(shadow));
  return sequence.partner;
}

// Tokens that the large model may write before the text must come back: no more than the sequence
// has left, so that a step without an end cannot run on.
std::int32_t Scheduler::step_limit(const Sequence& sequence) const {
  const Request& request = sequence.request;
  std::int32_t limit = request.max_tokens - sequence.generated();
  if (request.max_step_tokens > 0) limit = std::min(limit, request.max_step_tokens);
  if (sequence.thinking && request.max_think_tokens > 0)
    limit = std::min(limit, request.max_think_tokens - sequence.generated());
  return std::max(limit, 1);
}

void Scheduler::cross(SequenceId id, const std::vector<Token>& tokens, bool unread) {
  Sequence& sequence = find(id);
  Sequence* shadow = shadow_of(sequence);
  check_route(sequence);
  if (shadow == nullptr || !shadow->awaits_route)
    throw std::logic_error("sequence " + std::to_string(id) + " has no shadow that could write");
  if (shadow->length() + static_cast<std::int64_t>(tokens.size()) >= longest())
    throw std::invalid_argument("the text leaves the large model no room to write");
  go_on(sequence, kLarge, false, unread);
  sequence.away = true;
  shadow->suspended = std::exchange(sequence.suspended, false);
  // The sequence has found the steps and the end of this text already: outcomes are ignored.
  for (const Token token : tokens) text_.append(*shadow, token);
  shadow->settled = shadow->length();
  shadow->cut_bytes = 0;
  shadow->request.max_step_tokens = step_limit(sequence);
  shadow->last_sampler = sequence.last_sampler;
  go_on(*shadow, kLarge, false, false);
}

void Scheduler::cross_back(SequenceId id, const std::vector<Token>& tokens, Finish end) {
  Sequence& sequence = find(id);
  Sequence* shadow = shadow_of(sequence);
  if (!sequence.away || shadow == nullptr ||
      !(shadow->awaits_route || shadow->phase == Phase::finished))
    throw std::logic_error("sequence " + std::to_string(id) + " awaits no step of its shadow");
  turns_.changed();
  shadow->active = kSmall;
  sequence.away = false;
  sequence.suspended = std::exchange(shadow->suspended, false);
  sequence.last_sampler = shadow->last_sampler;
  Outcome outcome;
  for (const Token token : tokens) {
    outcome = text_.append(sequence, token);
    if (outcome.end != Finish::none) break;
  }
  if (outcome.end == Finish::none) outcome.end = end;
  outcome.boundary = true;
  // A step without text does not count.
  if (outcome.end == Finish::none && sequence.steps.back().start == sequence.length())
    sequence.drop_empty_step();
  // A reader that has computed the boundary before reads it again: its last row's logits are gone.
  if (sequence.computed[kSmall] == sequence.length())
    kv_.keep_rows(sequence, kSmall, sequence.length() - 1);
  conclude(sequence, outcome);
}

}  // namespace steer
