// Blocks that sequences share: the prefix cache, and blocks that no sequence holds any more.
#include <algorithm>

#include "schedule/scheduler.h"

namespace steer {

// Takes over full blocks with the rows that this sequence would compute next, whichever sequence
// computed them. Only rows before `end`.
void Scheduler::reuse_prefix(Sequence& sequence, int lane, std::int32_t end) {
  if (!config_.prefix_cache) return;
  const std::int32_t size = config_.block_tokens;
  auto& nodes = sequence.nodes[lane];
  std::int32_t& computed = sequence.computed[lane];
  while (computed == static_cast<std::int32_t>(nodes.size()) * size && computed + size <= end) {
    const auto parent = nodes.empty() ? PrefixCache::kRoot : nodes.back();
    const auto hit = cache_.find(
        lane, parent, {sequence.tokens.data() + computed, static_cast<std::size_t>(size)});
    // A block whose slab goes to the other lane once the batch in flight has retired is left.
    if (!hit || !pool_.open_to(pool_.slab_of(lane, hit->block), lane)) return;
    if (pool_.references(lane, hit->block) == BlockPool::kCached) {
      pool_.revive(lane, hit->block);
      cache_.unpark(lane, hit->block);
    } else {
      pool_.retain(lane, hit->block);
    }
    sequence.blocks[lane].push_back(hit->block);
    nodes.push_back(hit->node);
    computed += size;
    book_spared(sequence, lane, computed - size);
    sequence.usage.cached[lane] += size;
    ++counters_.hits[lane];
  }
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

// Takes over the part of the prompt that another sample has computed: full blocks are shared, the
// partly filled one is copied, as this sample is about to write to it. The prompt's last row is
// left to compute. To be called for a sequence that gets at least one row of this plan.
void Scheduler::share_prompt(Sequence& sequence, int lane) {
  const std::int32_t size = config_.block_tokens, last = sequence.prompt_length() - 1;
  std::int32_t& computed = sequence.computed[lane];
  auto& blocks = sequence.blocks[lane];
  if (computed >= last || computed % size != 0) return;
  const Sequence* from = nullptr;
  for (const Sequence* other : running_)
    if (other != &sequence && other->group == sequence.group &&
        other->computed[lane] > (from ? from->computed[lane] : computed))
      from = other;
  if (from == nullptr) return;
  const std::int32_t before = computed;
  std::int32_t rows = std::min(from->computed[lane], last);
  for (std::int32_t row = computed; row < rows; row += size)
    if (!pool_.open_to(pool_.slab_of(lane, from->blocks[lane][row / size]), lane)) rows = row;
  for (; computed + size <= rows; computed += size, ++counters_.shared[lane]) {
    blocks.push_back(from->blocks[lane][computed / size]);
    pool_.retain(lane, blocks.back());
  }
  Plan& plan = filling(lane);
  if (const auto to = rows == last && computed < rows && !plan.short_of_memory ? take_block(lane)
                                                                               : std::nullopt) {
    const BlockId source = plan.origin(from->blocks[lane][computed / size]);
    pool_.retain(lane, source);  // until the commit
    plan.add_copy(source, *to);
    blocks.push_back(*to);
    computed = rows;
    ++counters_.copied[lane];
  }
  book_spared(sequence, lane, before);
  sequence.usage.cached[lane] += computed - before;
}

// Books the rows from `first` on as spared: they are there now and were not computed.
void Scheduler::book_spared(Sequence& sequence, int lane, std::int32_t first) {
  const std::int32_t last = sequence.computed[lane];
  add_counts(sequence.usage.spared[lane], sequence.kinds(lane, first, last));
  sequence.highest[lane] = std::max(sequence.highest[lane], last);
}

// Registers the sequence's full blocks in the prefix cache, as far as their tokens are settled. If
// the tokens after them can be taken back, the last settled row is computed once more, to draw
// from: its block is not registered.
void Scheduler::register_blocks(Sequence& sequence, int model) {
  if (!config_.prefix_cache) return;
  const std::int32_t size = config_.block_tokens;
  const std::int32_t settled = sequence.settled - !sequence.request.settle_at_once;
  const std::int32_t end = std::min(sequence.computed[model], settled);
  auto& nodes = sequence.nodes[model];
  for (auto i = static_cast<std::int32_t>(nodes.size()); (i + 1) * size <= end; ++i) {
    const auto parent = nodes.empty() ? PrefixCache::kRoot : nodes.back();
    nodes.push_back(cache_.insert(
        model, parent, {sequence.tokens.data() + i * size, static_cast<std::size_t>(size)},
        sequence.blocks[model][i]));
  }
}

// The content of these blocks is not to be trusted: no later sequence may find them.
void Scheduler::forget_blocks(Sequence& sequence, int model) {
  for (const BlockId block : sequence.blocks[model]) cache_.forget(model, block);
  for (const auto node : sequence.nodes[model]) drop_slot(node);
}

// Drops one reference. The last one leaves a registered block cached, unless its slab is being
// emptied for the other model.
void Scheduler::give_back(int model, BlockId block) {
  const bool last = pool_.references(model, block) == 1;
  const bool keep =
      last && cache_.holds(model, block) && pool_.open_to(pool_.slab_of(model, block), model);
  if (last && !keep) cache_.forget(model, block);
  pool_.release(model, block, keep);
  if (keep) cache_.park(model, block);
}

void Scheduler::evict(int model, BlockId block) {
  cache_.forget(model, block);
  pool_.drop(model, block);
  ++counters_.evictions[model];
}

// A block that costs no sequence its KV. Free slabs go before the cache: a cached block may save a
// prefill, and slabs that hold nothing else are lent all the same.
std::optional<BlockId> Scheduler::take_block(int lane) {
  if (const auto block = pool_.allocate(lane)) return block;
  const auto& own = cache_.parked(lane);
  if (!own.empty()) {
    if (lane == kLarge) save(lane, own.front());
    evict(lane, own.front());
    return pool_.allocate(lane);
  }
  const int other = 1 - lane;
  for (const BlockId parked : cache_.parked(other)) {
    const SlabId slab = pool_.slab_of(other, parked);
    // Before a fence (of void rows) has passed, dropping the cache would give no block yet.
    if (!pool_.lendable(slab, lane)) continue;
    save_slab(slab, lane);
    for (const BlockId block : pool_.cached_blocks(slab)) evict(other, block);
    return pool_.allocate(lane);
  }
  return std::nullopt;
}

// The running sequences that hold `block` of lane `lane` at index `index` of their table: a shared
// block has the same index in all of them.
std::vector<Sequence*> Scheduler::holders(int lane, BlockId block, std::size_t index) const {
  std::vector<Sequence*> found;
  for (Sequence* sequence : running_) {
    const auto& blocks = sequence->blocks[lane];
    if (blocks.size() > index && blocks[index] == block) found.push_back(sequence);
  }
  return found;
}

}  // namespace steer
