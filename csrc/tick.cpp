// A tick of a lane: admission, the plan, and what its commit books.
#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

#include "scheduler.h"

namespace steer {

// New sequences wait until memory that nobody uses would hold their prompt on the model that they
// start on, in order. It is counted for each model by itself, so two that start on different models
// may still meet in the same slabs; then the progress rule decides. The first one always runs, so
// an arena that holds one request serves all of them.
void Scheduler::admit() {
  if (waiting_.empty()) return;
  std::array<std::int64_t, kModels> room{};
  for (int model = 0; model < kModels; ++model)
    room[model] = pool_.available(model) + pool_.reclaimable(model);
  for (const Sequence* other : running_)
    room[other->active] -= blocks_for(other->length() + 1) -
                           static_cast<std::int64_t>(other->blocks[other->active].size());
  while (!waiting_.empty() && static_cast<std::int32_t>(running_.size()) < config_.max_sequences) {
    Sequence* next = waiting_.front();
    const std::int64_t needed = blocks_for(next->length() + 1);
    if (!running_.empty() && room[next->active] < needed) return;
    room[next->active] -= needed;
    waiting_.pop_front();
    insert_in_order(running_, next);
    next->phase = Phase::running;
    ++counters_.admitted;
  }
}

// Decoding sequences come first in the row budget and prefills share what they leave, but memory
// is handed out strictly in order.
std::int32_t Scheduler::plan(int lane) {
  Plan& plan = lanes_.at(lane);
  if (plan.in_flight)
    throw std::logic_error("lane " + std::to_string(lane) + " has a plan in flight: commit first");
  admit();
  plan.clear();
  for (Sequence* sequence : running_)
    if (sequence->runnable(lane)) reuse_prefix(*sequence, lane);
  const auto decodes = std::count_if(running_.begin(), running_.end(), [lane](const Sequence* s) {
    return s->runnable(lane) && s->span(lane) == 1;
  });
  std::int32_t prefill = config_.max_tick_tokens - static_cast<std::int32_t>(decodes);
  for (Sequence* sequence : running_) {
    if (!sequence->runnable(lane)) continue;
    const std::int32_t span = sequence->span(lane);
    const std::int32_t wanted = span == 1 ? 1 : std::min(span, prefill);
    const std::int32_t before = plan.rows;
    if (wanted > 0) add_span(lane, *sequence, wanted);
    if (span > 1) prefill -= plan.rows - before;
  }
  if (!plan.short_of_memory) pool_.unreserve(lane);
  if (plan.sequences == 0) return 0;
  plan.tick = clock_[lane]++;
  plan.in_flight = true;
  for (const Sequence* sequence : plan.members)
    for (const BlockId block : sequence->blocks[lane]) pool_.fence(lane, block, plan.tick);
  ++counters_.ticks[lane];
  return plan.sequences;
}

void Scheduler::add_span(int lane, Sequence& sequence, std::int32_t wanted) {
  Plan& plan = lanes_[lane];
  wanted = std::min(wanted, config_.max_tick_tokens - plan.rows);
  const std::int32_t rows = wanted > 0 ? reserve(sequence, lane, wanted) : 0;
  if (rows > 0) plan.add(sequence, lane, rows, config_.block_tokens);
}

void Scheduler::commit(int lane, const std::int32_t* sampled, std::int32_t count) {
  Plan& plan = lanes_.at(lane);
  if (!plan.in_flight)
    throw std::logic_error("lane " + std::to_string(lane) + " has no plan in flight");
  if (count != plan.sequences)
    throw std::invalid_argument("commit needs one token a sequence: expected " +
                                std::to_string(plan.sequences) + ", got " + std::to_string(count));
  plan.in_flight = false;
  pool_.retire(lane, plan.tick);
  for (std::int32_t row = 0; row < plan.sequences; ++row)
    retire(*plan.members[row], lane, row, plan.samples[row] != 0, sampled[row]);
}

void Scheduler::fail(int lane) {
  Plan& plan = lanes_.at(lane);
  if (!plan.in_flight)
    throw std::logic_error("lane " + std::to_string(lane) + " has no plan in flight");
  plan.in_flight = false;
  pool_.retire(lane, plan.tick);
  for (Sequence* sequence : plan.members) {
    sequence->in_flight[lane] = 0;
    sequence->keep_pending[lane] = -1;
    sequence->end_pending = Finish::error;
    if (sequence->busy()) continue;  // the other lane's batch ends it
    sequence->truncate_pending = -1;
    finish(*sequence, std::exchange(sequence->end_pending, Finish::none));
  }
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
  if (unusable) forget_blocks(sequence, lane);  // nobody else shall live on what gave this
  if (sequence.end_pending != Finish::none || sequence.truncate_pending >= 0 || unusable) {
    if (sampled) count_sampled(sequence, lane, RowKind::discarded, last);
    if (sequence.busy()) return;
    const std::int32_t length = std::exchange(sequence.truncate_pending, -1);
    const Finish end = std::exchange(sequence.end_pending, Finish::none);
    if (end != Finish::none) return finish(sequence, end);
    if (length >= 0) return truncate_now(sequence, length);
    return finish(sequence, Finish::error);
  }
  if (!sampled) return;
  if (sequence.reading) {
    sequence.candidate = token;
    sequence.candidate_keys = last;
    sequence.awaits_route = true;
    events_.push_back({EventKind::decide, sequence.id, row});
  } else {
    count_sampled(sequence, lane, RowKind::sampled, last);
    append(sequence, token);
  }
}

// Books the rows [first, last), none of which was sampled from.
void Scheduler::account(Sequence& sequence, int lane, std::int32_t first, std::int32_t last) {
  auto& rows = sequence.usage.rows[lane];
  const auto book = [&](RowKind kind, std::int32_t from, std::int32_t to) {
    if (from < to) rows[static_cast<int>(kind)].add(from, to);
  };
  const std::int32_t fresh = std::max(first, sequence.highest[lane]);
  const std::int32_t prompt = sequence.prompt_length();
  book(RowKind::recompute, first, std::min(last, fresh));
  book(RowKind::prompt, fresh, std::min(last, prompt));
  book(RowKind::catchup, std::max(fresh, prompt), last);
}

// Books one row whose logits gave a token; it attends to `keys` keys, itself included.
void Scheduler::count_sampled(Sequence& sequence, int lane, RowKind kind, std::int64_t keys) {
  sequence.usage.rows[lane][static_cast<int>(kind)].add(keys - 1, keys);
  if (sequence.last_sampler != lane) sequence.usage.entries[lane].add(0, keys - 1);
  sequence.last_sampler = lane;
}

}  // namespace steer
