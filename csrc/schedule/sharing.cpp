// What a sequence takes over instead of computing it: from the prefix cache, from another sample of
// its prompt, from host memory.
#include <algorithm>

#include "schedule/scheduler.h"

namespace steer {

// Takes over rows before `end` from the prefix cache.
void Scheduler::reuse_prefix(Sequence& sequence, int lane, std::int32_t end) {
  if (!config_.prefix_cache) return;
  const std::int32_t before = sequence.computed[lane];
  kv_.reuse_prefix(sequence, lane, sequence.first(end));
  book_spared(sequence, lane, before);
  sequence.usage.cached[lane] += sequence.computed[lane] - before;
}

// Should this sample wait for an earlier one that is about to compute the shared prompt? Both would
// compute the same rows. It waits only for samples before it in the order.
bool Scheduler::follows_sample(const Sequence& sequence, int lane) const {
  const std::int32_t last = sequence.prompt_length() - 1;
  if (sequence.sample == 0 || sequence.computed[lane] >= last) return false;
  for (const Sequence* other : running_) {
    if (other == &sequence) return false;
    if (other->group == sequence.group && other->active == lane && other->computed[lane] < last &&
        (other->in_flight[lane] > 0 || other->runnable(lane)))
      return true;
  }
  return false;
}

// Takes over the part of the prompt that another sample has computed. The prompt's last row is left
// to compute. To be called for a sequence that gets at least one row of this plan.
void Scheduler::share_prompt(Sequence& sequence, int lane) {
  const std::int32_t before = sequence.computed[lane], last = sequence.prompt_length() - 1;
  if (before >= last || before % config_.block_tokens != 0) return;
  const Sequence* from = nullptr;
  for (const Sequence* other : running_)
    if (other != &sequence && other->group == sequence.group &&
        other->computed[lane] > (from ? from->computed[lane] : before))
      from = other;
  if (from == nullptr) return;
  kv_.share_prompt(sequence, *from, lane, last, filling(lane));
  book_spared(sequence, lane, before);
  sequence.usage.cached[lane] += sequence.computed[lane] - before;
}

// Restores the next rows of the large model from host memory.
void Scheduler::restore(Sequence& sequence) {
  const std::int32_t end = sequence.findable(kLarge), before = sequence.computed[kLarge];
  if (!kv_.is_parked(sequence, sequence.tokens, end)) return;
  const std::int32_t rows =
      config_.block_tokens * kv_.restore(sequence, sequence.tokens, end, filling(kLarge),
                                         [&] { return find_block(sequence, kLarge); });
  book_spared(sequence, kLarge, before);
  sequence.usage.restored += rows;
  sequence.usage.cached[kLarge] += sequence.computed[kLarge] - before - rows;
}

// Books the rows from `first` on as spared: they are there now and were not computed.
void Scheduler::book_spared(Sequence& sequence, int lane, std::int32_t first) {
  const std::int32_t last = sequence.computed[lane];
  if (first == last) return;
  add_counts(sequence.usage.spared[lane], sequence.kinds(lane, first, last));
  sequence.highest[lane] = std::max(sequence.highest[lane], last);
}

// Registers the sequence's full blocks in the prefix cache, as far as their tokens are settled. If
// the tokens after them can be taken back, the last settled row is computed once more, to draw
// from: its block is not registered.
void Scheduler::register_blocks(Sequence& sequence, int model) {
  if (!config_.prefix_cache) return;
  const std::int32_t settled = sequence.settled - !sequence.request.settle_at_once;
  kv_.register_blocks(sequence, model, sequence.first(std::min(sequence.computed[model], settled)));
}

}  // namespace steer
