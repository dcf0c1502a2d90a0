// The end of a tick: what its draws do to the sequences, and which rows are booked as what.
#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

#include "schedule/scheduler.h"

namespace steer {

void Scheduler::commit(int lane, std::span<const Token> sampled) {
  Plan& plan = landing(lane);
  if (sampled.size() != static_cast<std::size_t>(plan.draws))
    throw std::invalid_argument(
        "commit needs a token for each draw, and one for a sequence without any: expected " +
        std::to_string(plan.draws) + ", got " + std::to_string(sampled.size()));
  land(lane, plan);
  for (std::int32_t row = 0; row < plan.sequences; ++row) {
    const auto draws = static_cast<std::size_t>(plan.samples[row]);
    const auto tokens = sampled.first(draws);
    sampled = sampled.subspan(std::max<std::size_t>(1, draws));
    Sequence* sequence = plan.members[row];
    if (sequence == nullptr) continue;
    if (sequence->in_flight[lane] > 0) retire(*sequence, lane, row, tokens);
    settle_ahead(*sequence);
  }
}

std::vector<bool> Scheduler::standing(int lane) const {
  std::vector<bool> stands;
  if (const Plan* plan = oldest(lane))
    for (const Sequence* sequence : plan->members)
      stands.push_back(sequence != nullptr && sequence->in_flight[lane] > 0);
  return stands;
}

void Scheduler::fail(int lane) {
  Plan& plan = landing(lane);
  land(lane, plan, false);
  for (Sequence* sequence : plan.members) {
    if (sequence == nullptr) continue;
    drop_ahead(*sequence, lane);
    if (sequence->in_flight[lane] == 0) continue;  // its rows here were planned ahead
    sequence->in_flight[lane] = 0;
    const std::int32_t keep = std::exchange(sequence->keep_pending[lane], -1);
    // The other lane may still be reading it.
    kv_.keep_rows(*sequence, lane, sequence->computed[lane]);
    if (!sequence->round.open || sequence->request.verified || lane != kSmall) {
      end(*sequence, Finish::error);
      continue;
    }
    // It can do without guesses.
    if (keep >= 0) take_rows(*sequence, lane, keep);
    close_round(*sequence);
    take_effect(*sequence);
  }
}

// The plan that retires next.
Plan& Scheduler::landing(int lane) {
  const Plan* plan = oldest(lane);
  if (plan == nullptr)
    throw std::logic_error("lane " + std::to_string(lane) + " has no plan in flight");
  return const_cast<Plan&>(*plan);
}

// A plan is no longer in flight. `done`: it has run.
void Scheduler::land(int lane, Plan& plan, bool done) {
  plan.in_flight = false;
  turns_.changed();
  kv_.retire(lane, plan, done);
}

// `draws`: the tokens drawn from the last of its rows.
void Scheduler::retire(Sequence& sequence, int lane, std::int32_t row,
                       std::span<const Token> draws) {
  const bool sampled = !draws.empty();
  const Token token = sampled ? draws.front() : -1;
  const std::int32_t first = sequence.computed[lane];
  const std::int32_t last = first + sequence.in_flight[lane];
  account(sequence, lane, first, last - static_cast<std::int32_t>(draws.size()));
  sequence.in_flight[lane] = 0;
  sequence.computed[lane] = last;
  sequence.highest[lane] = std::max(sequence.highest[lane], last);
  register_blocks(sequence, lane);
  const std::int32_t keep = std::exchange(sequence.keep_pending[lane], -1);
  if (keep >= 0) take_rows(sequence, lane, keep);

  // A model that does not write the text has guessed at it.
  if (sampled && (sequence.active != lane || sequence.round.open)) {
    guess(sequence, last, token);
    return take_effect(sequence);
  }
  const bool unusable = sampled && token < 0;
  if (unusable) kv_.forget_blocks(sequence, lane);  // do not share KV that gave unusable logits
  if (unusable && !sequence.pending()) sequence.end_pending = Finish::error;
  if (sequence.pending()) {
    for (auto keys = last - static_cast<std::int32_t>(draws.size()); keys < last; ++keys)
      count_sampled(sequence, lane, RowKind::discarded, keys + 1);
    return take_effect(sequence);
  }
  if (!sampled) return;
  if (sequence.reading) {
    sequence.candidate = token;
    sequence.candidate_keys = last;
    sequence.awaits_route = true;
    report(EventKind::decide, sequence, row);
  } else if (lane == kLarge && sequence.request.draft_tokens > 0 && sequence.trial_from < 0) {
    verify(sequence, draws);
  } else {
    count_sampled(sequence, lane, RowKind::sampled, last);
    append(sequence, token);
  }
}

// What was to happen when the batch in flight has retired, if that is so.
void Scheduler::take_effect(Sequence& sequence) {
  if (!sequence.pending() || sequence.busy()) return;
  const std::int32_t length = std::exchange(sequence.truncate_pending, -1);
  const Finish reason = std::exchange(sequence.end_pending, Finish::none);
  reason != Finish::none ? finish(sequence, reason) : truncate_now(sequence, length);
}

// Books the rows [first, last), none of which was sampled from.
void Scheduler::account(Sequence& sequence, int lane, std::int32_t first, std::int32_t last) {
  if (first < last) {  // not so in a decode: its only row is sampled from
    const RowCounts kinds = sequence.kinds(lane, first, last);
    add_counts(sequence.usage.rows[lane], kinds);
    counters_.recomputed[lane] += kinds[static_cast<int>(RowKind::recompute)].rows;
  }
  guard_.computed(last - first, active());
}

// Books one row whose logits gave a token; it attends to `keys` keys, itself included.
void Scheduler::count_sampled(Sequence& sequence, int lane, RowKind kind, std::int64_t keys) {
  sequence.usage.rows[lane][static_cast<int>(kind)].add(keys - 1, keys);
  guard_.computed(1, active());
  if (sequence.last_sampler != lane) sequence.usage.entries[lane].add(0, keys - 1);
  sequence.last_sampler = lane;
}

}  // namespace steer
