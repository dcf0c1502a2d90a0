// Taking back tokens that were not settled, and KV that others need.
#include <algorithm>
#include <stdexcept>
#include <string>

#include "schedule/scheduler.h"

namespace steer {

void Scheduler::settle(SequenceId id, std::int32_t length) {
  Sequence& sequence = find(id);
  // Tokens that are about to be taken back, or on trial, cannot be settled.
  std::int32_t end = sequence.length();
  if (sequence.trial_from >= 0) end = sequence.trial_from;
  if (sequence.truncate_pending >= 0) end = std::min(end, sequence.truncate_pending);
  if (length < sequence.settled || length > end)
    throw std::invalid_argument("settled must grow from " + std::to_string(sequence.settled) +
                                " and stay within the " + std::to_string(end) +
                                " tokens that stand; got " + std::to_string(length));
  turns_.changed();
  sequence.settled = length;
  sequence.note_settled();
  for (int model = 0; model < kModels; ++model) register_blocks(sequence, model);
}

void Scheduler::truncate(SequenceId id, std::int32_t length) {
  Sequence& sequence = find(id);
  if (sequence.phase == Phase::finished)
    throw std::logic_error("sequence " + std::to_string(id) + " is finished");
  if (sequence.request.relay || sequence.shadow)
    throw std::invalid_argument("what has crossed cannot be taken back");
  if (length < sequence.settled || length > sequence.length())
    throw std::invalid_argument("cannot truncate to " + std::to_string(length) + ": tokens up to " +
                                std::to_string(sequence.settled) + " are settled and there are " +
                                std::to_string(sequence.length()));
  if (length == sequence.length()) return;  // nothing to take back
  turns_.changed();
  admission_due_ = true;
  if (!sequence.busy()) return truncate_now(sequence, length);
  std::int32_t& pending = sequence.truncate_pending;
  pending = pending < 0 ? length : std::min(pending, length);
  // An open decide event is about the tokens to go; an answer could settle them, or cut below.
  drop_candidate(sequence);
  sequence.awaits_route = false;
}

void Scheduler::truncate_now(Sequence& sequence, std::int32_t length) {
  // The last token's logits are lost with its successor: its row is computed again.
  const Step first_taken = take_back(sequence, length, {length - 1, length - 1});
  if (first_taken.start != length) {
    sequence.active = sequence.steps.back().model;
    return;
  }
  sequence.active = first_taken.model;  // of the step that a trial opens here without an event
  reach_boundary(sequence);
}

// Takes back tokens[length:] and the KV past `rows` of each model; rows in flight lie before those.
// Returns the first step that was taken back, or the last step if it was only cut.
Step Scheduler::take_back(Sequence& sequence, std::int32_t length,
                          std::array<std::int32_t, kModels> rows) {
  drop_candidate(sequence);
  sequence.drop_round();
  keep_leftover(sequence, length);
  discard_tokens(sequence, length);
  // A decide event about these tokens needs no answer any more.
  std::erase_if(events_, [&](const Event& event) {
    return event.sequence == sequence.request_id() && event.shadow == sequence.shadow;
  });
  ++sequence.attempt;
  sequence.cuts.push_back(length);
  for (int model = 0; model < kModels; ++model) {
    drop_ahead(sequence, model);
    if (sequence.in_flight[model] == 0) kv_.keep_rows(sequence, model, rows[model]);
    sequence.highest[model] = std::min(sequence.highest[model], length);
  }
  if (sequence.rest_from >= length) sequence.rest_from = -1;
  if (sequence.trial_from >= length) sequence.trial_from = -1;
  if (sequence.unlike >= length) sequence.unlike = -1;
  std::erase_if(sequence.replaced, [length](std::int32_t at) { return at >= length; });
  sequence.trial = Outcome{};
  sequence.closing = Finish::none;
  sequence.reading = sequence.awaits_route = false;
  return text_.cut(sequence, length);
}

// Books the rows that gave tokens[length:] as discarded. The row of a token is one position before
// it; forced tokens have none.
void Scheduler::discard_tokens(Sequence& sequence, std::int32_t length) {
  std::int32_t last = sequence.length();
  for (auto step = sequence.steps.rbegin(); last > length; last = (step++)->start) {
    const std::int32_t first = std::max(step->start, length);
    RowCount dropped, forced;
    dropped.add(first - 1, last - 1);
    for (const std::int32_t at : sequence.forced)
      if (at >= first && at < last) forced.add(at - 1, at);
    dropped -= forced;
    auto& rows = sequence.usage.rows[step->model];
    rows[static_cast<int>(RowKind::sampled)] -= dropped;
    rows[static_cast<int>(RowKind::discarded)] += dropped;
  }
}

// Takes the KV past the first `rows` rows. It will be missed: counted, and deferred while in
// flight.
void Scheduler::take_rows(Sequence& sequence, int model, std::int32_t rows) {
  std::int32_t& pending = sequence.keep_pending[model];
  drop_ahead(sequence, model);
  if (sequence.in_flight[model] > 0) {
    pending = pending < 0 ? rows : std::min(pending, rows);
    return;
  }
  if (sequence.computed[model] <= rows) return;
  counters_.lost_rows[model] += sequence.computed[model] - rows;
  ++counters_.preemptions;
  kv_.keep_rows(sequence, model, rows);
}

void Scheduler::preempt(SequenceId id) {
  Sequence& sequence = find(id);
  turns_.changed();
  admission_due_ = true;
  for (int model = 0; model < kModels; ++model) take_rows(sequence, model, 0);
}

}  // namespace steer
