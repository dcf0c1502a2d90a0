// A tick of a lane: its plan and its commit.
#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

#include "scheduler.h"

namespace steer {

// Decoding sequences come first in the row budget and prefills share the rest, but memory is handed
// out strictly in order.
std::int32_t Scheduler::plan(int lane, bool ahead) {
  const Plan* before = oldest(lane);
  if (before != nullptr && (!ahead || std::ranges::all_of(lanes_[lane], &Plan::in_flight)))
    throw std::logic_error("lane " + std::to_string(lane) + " has a plan in flight: commit first");
  ahead = before != nullptr;
  admit();
  Plan& plan = filling(lane);
  plan.clear();
  if (holds(lane, ahead)) return 0;
  add_spans(lane, ahead);
  if (!plan.short_of_memory) pool_.unreserve(lane);
  if (config_.background[lane] > 0 && !plan.short_of_memory)
    for (Sequence* sequence : running_) read_along(lane, *sequence);
  // After a batch in flight an empty plan does not mean that the lane has nothing to do.
  if (config_.lanes.policy != LanePolicy::latency && (plan.sequences > 0 || !ahead))
    turns_.planned(lane, plan.sequences, {runnable(kSmall), runnable(kLarge)});
  if (plan.sequences == 0) return 0;
  plan.tick = clock_[lane]++;
  plan.in_flight = true;
  for (Sequence* sequence : plan.members) sequence->last_tick[lane] = plan.tick;
  ++counters_.ticks[lane];
  return plan.sequences;
}

void Scheduler::add_spans(int lane, bool ahead) {
  Plan& plan = filling(lane);
  std::int32_t prefill = config_.max_tick_tokens;
  for (Sequence* sequence : running_) {
    if (sequence->runnable(lane)) {
      reuse_prefix(*sequence, lane, sequence->findable(lane));
      prefill -= sequence->span(lane) == 1;
    } else if (ahead && goes_ahead(*sequence, lane)) {
      prefill -= sequence->span_ahead(lane) == 1;
    }
  }
  for (Sequence* sequence : running_) {
    const bool follows = ahead && goes_ahead(*sequence, lane);
    if (!follows && (!sequence->runnable(lane) || follows_sample(*sequence, lane))) continue;
    const std::int32_t span = follows ? sequence->span_ahead(lane) : sequence->span(lane);
    const std::int32_t wanted = span == 1 ? 1 : std::min(span, prefill);
    const std::int32_t before = plan.rows;
    if (wanted > 0)
      follows ? add_ahead(plan, lane, *sequence, wanted) : add_span(plan, lane, *sequence, wanted);
    if (span > 1) prefill -= plan.rows - before;
  }
}

const Plan* Scheduler::oldest(int lane) const {
  const Plan* found = nullptr;
  for (const Plan& plan : lanes_.at(lane))
    if (plan.in_flight && (found == nullptr || plan.tick < found->tick)) found = &plan;
  return found;
}

// Sequences that could be in a plan of the lane; with `ahead` also those that are in flight.
std::int32_t Scheduler::runnable(int lane, bool ahead) const {
  return static_cast<std::int32_t>(std::count_if(
      running_.begin(), running_.end(),
      [&](const Sequence* s) { return s->runnable(lane) || (ahead && goes_ahead(*s, lane)); }));
}

// Does the lane policy put this plan off?
bool Scheduler::holds(int lane, bool ahead) {
  if (config_.lanes.policy == LanePolicy::latency) return false;
  const bool held = turns_.holds(
      lane, oldest(1 - lane) != nullptr, active(),
      {runnable(kSmall, ahead && lane == kSmall), runnable(kLarge, ahead && lane == kLarge)});
  counters_.held[lane] += held;
  return held;
}

void Scheduler::add_span(Plan& plan, int lane, Sequence& sequence, std::int32_t wanted) {
  wanted = std::min(wanted, config_.max_tick_tokens - plan.rows);
  if (wanted <= 0) return;
  if (sequence.samples > 1) share_prompt(sequence, lane);
  if (lane == kLarge) restore(sequence);
  const std::int32_t rows = reserve(sequence, lane, std::min(wanted, sequence.span(lane)));
  if (rows > 0) plan.add(sequence, lane, rows, config_.block_tokens);
}

// Reads along with the other model, with rows and blocks that no other sequence needs: nothing is
// evicted for it, and KV that was taken away once is not computed again. One settled token is left
// unread, so that there is a row to sample from whatever is taken back.
void Scheduler::read_along(int lane, Sequence& sequence) {
  Plan& plan = filling(lane);
  if (sequence.request.relay || sequence.suspended || sequence.active == lane ||
      sequence.in_flight[lane] > 0 || sequence.ahead[lane].rows > 0 || sequence.pending() ||
      sequence.rest_from >= 0 || (lane == kSmall && sequence.request.reader != kSmall) ||
      sequence.settled - 1 - sequence.computed[lane] < config_.background[lane])
    return;
  reuse_prefix(sequence, lane, std::min(sequence.settled - 1, sequence.findable(lane)));
  const std::int32_t first = sequence.computed[lane];
  if (first < sequence.highest[lane]) return;
  std::int32_t rows = std::min(sequence.settled - 1 - first, config_.max_tick_tokens - plan.rows);
  auto& blocks = sequence.blocks[lane];
  while (static_cast<std::int32_t>(blocks.size()) < blocks_for(first + std::max(rows, 0))) {
    const auto block = pool_.allocate(lane);
    if (!block) break;
    blocks.push_back(*block);
  }
  const auto room = static_cast<std::int32_t>(blocks.size()) * config_.block_tokens;
  rows = std::min(rows, room - first);
  if (rows <= 0) return;
  counters_.background[lane] += rows;
  plan.add(sequence, lane, rows, config_.block_tokens);
}

void Scheduler::commit(int lane, const std::int32_t* sampled, std::int32_t count) {
  Plan& plan = landing(lane);
  if (count != plan.sequences)
    throw std::invalid_argument("commit needs one token a sequence: expected " +
                                std::to_string(plan.sequences) + ", got " + std::to_string(count));
  land(lane, plan);
  for (std::int32_t row = 0; row < plan.sequences; ++row) {
    Sequence* sequence = plan.members[row];
    if (sequence == nullptr) continue;
    if (sequence->in_flight[lane] > 0)
      retire(*sequence, lane, row, plan.samples[row] != 0, sampled[row]);
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
    sequence->keep_pending[lane] = -1;
    keep_rows(*sequence, lane, sequence->computed[lane]);  // the other lane may still be reading it
    end(*sequence, Finish::error);
  }
}

// The plan that retires next.
Plan& Scheduler::landing(int lane) {
  const Plan* plan = oldest(lane);
  if (plan == nullptr)
    throw std::logic_error("lane " + std::to_string(lane) + " has no plan in flight");
  return const_cast<Plan&>(*plan);
}

// A plan is no longer in flight: the sources of its copies are released. `done`: it has run.
void Scheduler::land(int lane, Plan& plan, bool done) {
  plan.in_flight = false;
  pool_.retire(lane, plan.tick);
  turns_.changed();
  land_parking(plan, done);
  for (std::int32_t copy = 0; copy < plan.copied; ++copy) give_back(lane, plan.copies[2 * copy]);
}

void Scheduler::retire(Sequence& sequence, int lane, std::int32_t row, bool sampled, Token token) {
  const std::int32_t first = sequence.computed[lane];
  const std::int32_t last = first + sequence.in_flight[lane];
  account(sequence, lane, first, sampled ? last - 1 : last);
  sequence.in_flight[lane] = 0;
  sequence.computed[lane] = last;
  sequence.highest[lane] = std::max(sequence.highest[lane], last);
  register_blocks(sequence, lane);
  const std::int32_t keep = std::exchange(sequence.keep_pending[lane], -1);
  if (keep >= 0) take_rows(sequence, lane, keep);

  const bool unusable = sampled && token < 0;
  if (unusable) forget_blocks(sequence, lane);  // do not share KV that gave unusable logits
  if (unusable && !sequence.pending()) sequence.end_pending = Finish::error;
  if (sequence.pending()) {
    if (sampled) count_sampled(sequence, lane, RowKind::discarded, last);
    if (sequence.busy()) return;
    const std::int32_t length = std::exchange(sequence.truncate_pending, -1);
    const Finish reason = std::exchange(sequence.end_pending, Finish::none);
    if (reason != Finish::none) return finish(sequence, reason);
    return truncate_now(sequence, length);
  }
  if (!sampled) return;
  if (sequence.reading) {
    sequence.candidate = token;
    sequence.candidate_keys = last;
    sequence.awaits_route = true;
    report(EventKind::decide, sequence, row);
  } else {
    count_sampled(sequence, lane, RowKind::sampled, last);
    append(sequence, token);
  }
}

// Books the rows [first, last), none of which was sampled from.
void Scheduler::account(Sequence& sequence, int lane, std::int32_t first, std::int32_t last) {
  const RowCounts kinds = sequence.kinds(lane, first, last);
  add_counts(sequence.usage.rows[lane], kinds);
  counters_.recomputed[lane] += kinds[static_cast<int>(RowKind::recompute)].rows;
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
