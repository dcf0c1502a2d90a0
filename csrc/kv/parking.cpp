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
#include <ranges>
#include <span>
#include <utility>
#include <vector>

#include "kv/kv_cache.h"

namespace steer {

// To be called before `block` of the large model is evicted, in a plan of `lane` that is sure to
// take its slab and thus to have rows.
void KvCache::save(int lane, BlockId block, KvPlan& plan) {
  if (host_.total() == 0 || !cache_.holds(kLarge, block)) return;
  const auto node = cache_.node(kLarge, block);
  if (const auto slot = cache_.slot(node); slot != PrefixCache::kNowhere) return host_.touch(slot);
  const auto taken = host_.take(node);
  if (!taken) return;
  if (taken->displaced != HostPool::kNone) cache_.clear_slot(taken->displaced);
  cache_.set_slot(node, taken->slot);
  plan.add_save(block, taken->slot);
  pool_.fence_slab(lane, pool_.slab_of(kLarge, block), plan.tick);
  ++counters_.saved;
}

void KvCache::save_slab(SlabId slab, int lane, KvPlan& plan) {
  if (lane == kLarge || host_.total() == 0 || !pool_.drained(slab, lane)) return;
  const BlockId first = slab * pool_.slots(kLarge), last = first + pool_.slots(kLarge);
  for (BlockId block = first; block < last; ++block) save(lane, block, plan);
}

// The host copy of the block that a sequence would compute next, if its rows lie before `end`.
std::optional<PrefixCache::HostHit> KvCache::next_on_host(const KvState& kv,
                                                          std::span<const Token> tokens,
                                                          std::int32_t end) const {
  const std::int32_t size = block_tokens_, computed = kv.computed[kLarge];
  if (host_.total() == 0 || computed != static_cast<std::int32_t>(kv.nodes[kLarge].size()) * size ||
      computed + size > end)
    return std::nullopt;
  const auto hit =
      cache_.find_on_host(kLarge, last_node(kv, kLarge), tokens.subspan(computed, size));
  return hit && host_.is_ready(hit->slot) ? hit : std::nullopt;
}

// Restored blocks need memory, so the cached blocks that the sequence is about to take over are
// made the last to be evicted, those at its front the very last.
void KvCache::touch_found(const KvState& kv, std::span<const Token> tokens) {
  const auto size = static_cast<std::size_t>(block_tokens_);
  auto parent = last_node(kv, kLarge);
  std::vector<BlockId> found;
  for (auto next = kv.nodes[kLarge].size() * size; next + size < tokens.size(); next += size) {
    const auto hit = cache_.find(kLarge, parent, tokens.subspan(next, size));
    const auto saved = cache_.find_on_host(kLarge, parent, tokens.subspan(next, size));
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

std::int32_t KvCache::restore(KvState& kv, std::span<const Token> tokens, std::int32_t end,
                              KvPlan& plan, const BlockSource& take) {
  touch_found(kv, tokens);
  auto spare = take();
  if (!spare) return 0;
  auto& blocks = kv.blocks[kLarge];
  std::int32_t restored = 0;
  while (plan.may_restore()) {
    const auto hit = next_on_host(kv, tokens, end);
    if (!hit) break;
    host_.hold(hit->slot);
    const auto next = take();
    if (!next) {
      host_.let_go(hit->slot);
      break;
    }
    host_.touch(hit->slot);
    plan.add_restore(hit->slot, *spare);
    blocks.push_back(std::exchange(*spare, *next));
    kv.nodes[kLarge].push_back(hit->node);
    kv.computed[kLarge] += block_tokens_;
    ++restored;
    reuse_prefix(kv, kLarge, tokens.first(end));
  }
  blocks.push_back(*spare);
  counters_.restored += restored;
  return restored;
}

// A plan has retired; `done`: its tick has run. Restored blocks are registered now.
void KvCache::land_parking(const KvPlan& plan, bool done) {
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
void KvCache::drop_slot(PrefixCache::Node node) {
  const auto slot = cache_.slot(node);
  if (slot == PrefixCache::kNowhere) return;
  host_.drop(slot);
  cache_.clear_slot(node);
}

}  // namespace steer
