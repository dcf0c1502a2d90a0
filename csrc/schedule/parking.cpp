// KV of the large model in host memory: a block that is evicted is copied out first, and copied
// back where it would otherwise be computed again.
//
// A block is saved by the lane that takes its memory, in the tick that takes it, before the tick
// writes anything. So nothing waits for the copy: that lane's ticks run in order, and the other
// lane gets the slab only after the fence of this one. A registered block has retired, so either
// lane may read it. If the memory cannot be taken within the plan, because a tick in flight still
// uses it, or if every slot is in use, nothing is saved and the lost KV is computed again.
//
// The host copy stays when it is copied back, as a registered block never changes: the next time it
// is evicted there is nothing to copy. A slot is read only once the tick that writes it has
// retired, and written only when no tick in flight reads it.
#include <algorithm>
#include <ranges>
#include <span>
#include <utility>
#include <vector>

#include "schedule/scheduler.h"

namespace steer {

// To be called before `block` of the large model is evicted, in a plan of `lane` that is sure to
// take its slab and thus to have rows.
void Scheduler::save(int lane, BlockId block) {
  if (host_.total() == 0 || !cache_.holds(kLarge, block)) return;
  const auto node = cache_.node(kLarge, block);
  if (const auto slot = cache_.slot(node); slot != PrefixCache::kNowhere) return host_.touch(slot);
  const auto taken = host_.take(node);
  if (!taken) return;
  if (taken->displaced != HostPool::kNone) cache_.clear_slot(taken->displaced);
  cache_.set_slot(node, taken->slot);
  filling(lane).add_save(block, taken->slot);
  pool_.fence_slab(lane, pool_.slab_of(kLarge, block), clock_[lane]);
  ++counters_.saved;
}

// Saves the content of a slab of the large model, if the small lane can have the slab at once when
// the sequences that hold its blocks give them up.
void Scheduler::save_slab(SlabId slab, int lane) {
  if (lane == kLarge || host_.total() == 0 || !pool_.drained(slab, lane)) return;
  const BlockId first = slab * pool_.slots(kLarge), last = first + pool_.slots(kLarge);
  std::int64_t references = 0;
  for (BlockId block = first; block < last; ++block)
    references += std::max(0, pool_.references(kLarge, block));
  for (const Sequence* from : running_) {
    const auto& blocks = from->blocks[kLarge];
    const auto held = std::ranges::count_if(
        blocks, [&](BlockId block) { return pool_.slab_of(kLarge, block) == slab; });
    if (held > 0 && (from->in_flight[kLarge] + from->ahead[kLarge].rows > 0 ||
                     from->last_tick[kLarge] > pool_.retired(kLarge)))
      return;
    references -= held;
  }
  if (references > 0) return;  // some are held by a copy in flight
  for (BlockId block = first; block < last; ++block) save(lane, block);
}

// The host copy of the block that a sequence would compute next, if that leaves a row to compute.
std::optional<PrefixCache::HostHit> Scheduler::next_on_host(const Sequence& sequence) const {
  const std::int32_t size = config_.block_tokens, computed = sequence.computed[kLarge];
  const auto& nodes = sequence.nodes[kLarge];
  if (host_.total() == 0 || computed != static_cast<std::int32_t>(nodes.size()) * size ||
      computed + size > sequence.findable(kLarge))
    return std::nullopt;
  const auto hit =
      cache_.find_on_host(kLarge, nodes.empty() ? PrefixCache::kRoot : nodes.back(),
                          {sequence.tokens.data() + computed, static_cast<std::size_t>(size)});
  return hit && host_.is_ready(hit->slot) ? hit : std::nullopt;
}

// Restored blocks need memory, so the cached blocks that the sequence is about to take over are
// made the last to be evicted, those at its front the very last.
void Scheduler::touch_found(const Sequence& sequence) {
  const auto size = static_cast<std::size_t>(config_.block_tokens);
  const auto& nodes = sequence.nodes[kLarge];
  auto parent = nodes.empty() ? PrefixCache::kRoot : nodes.back();
  std::vector<BlockId> found;
  for (auto next = nodes.size() * size; next + size < sequence.tokens.size(); next += size) {
    const std::span<const Token> tokens{sequence.tokens.data() + next, size};
    const auto hit = cache_.find(kLarge, parent, tokens);
    const auto saved = cache_.find_on_host(kLarge, parent, tokens);
    if (!hit && !saved) break;
    parent = hit ? hit->node : saved->node;
    if (hit && pool_.references(kLarge, hit->block) == BlockPool::kCached)
      found.push_back(hit->block);
  }
  for (const BlockId block : std::views::reverse(found)) {
    cache_.unpark(kLarge, block);
    cache_.park(kLarge, block);
  }
}

// Restores the next blocks of the sequence from host memory, and those in between from the cache. A
// block for the row after them is taken first: a sequence with copies has a row in the plan.
void Scheduler::restore(Sequence& sequence) {
  if (!next_on_host(sequence)) return;
  touch_found(sequence);
  auto spare = find_block(sequence, kLarge);
  if (!spare) return;
  auto& blocks = sequence.blocks[kLarge];
  Plan& plan = filling(kLarge);
  while (plan.may_restore()) {
    const auto hit = next_on_host(sequence);
    if (!hit) break;
    host_.hold(hit->slot);
    const auto next = find_block(sequence, kLarge);
    if (!next) {
      host_.let_go(hit->slot);
      break;
    }
    host_.touch(hit->slot);
    plan.add_restore(hit->slot, *spare);
    blocks.push_back(std::exchange(*spare, *next));
    sequence.nodes[kLarge].push_back(hit->node);
    std::int32_t& computed = sequence.computed[kLarge];
    computed += config_.block_tokens;
    book_spared(sequence, kLarge, computed - config_.block_tokens);
    sequence.usage.restored += config_.block_tokens;
    ++counters_.restored;
    reuse_prefix(sequence, kLarge, sequence.findable(kLarge));
  }
  blocks.push_back(*spare);
}

// A plan has retired; `done`: its tick has run. Restored blocks are registered now.
void Scheduler::land_parking(const Plan& plan, bool done) {
  for (std::int32_t i = 0; i < plan.saved; ++i) {
    const auto slot = plan.saves[2 * i + 1];
    if (done) host_.set_ready(slot);
    if (!done) drop_slot(host_.node(slot));
    host_.let_go(slot);
  }
  for (std::int32_t i = 0; i < plan.restored; ++i) {
    const auto slot = plan.restores[2 * i];
    if (done) cache_.attach(host_.node(slot), plan.restores[2 * i + 1]);
    host_.let_go(slot);
  }
}

// Drops a node's host copy, if it has one.
void Scheduler::drop_slot(PrefixCache::Node node) {
  const auto slot = cache_.slot(node);
  if (slot == PrefixCache::kNowhere) return;
  host_.drop(slot);
  cache_.clear_slot(node);
}

}  // namespace steer
