// Blocks that sequences share, and blocks that no sequence holds any more.
#include "kv/kv_cache.h"

#include <algorithm>
#include <stdexcept>

namespace steer {

KvCache::KvCache(SlabId slabs, std::array<std::int32_t, kModels> slots, std::int32_t block_tokens,
                 bool prefix_cache, std::int32_t host_blocks)
    : block_tokens_(block_tokens),
      prefix_cache_(prefix_cache),
      pool_(slabs, slots),
      host_(host_blocks) {}

void KvCache::reuse_prefix(KvState& kv, int lane, std::span<const Token> tokens) {
  if (!prefix_cache_) return;
  const std::int32_t size = block_tokens_, end = static_cast<std::int32_t>(tokens.size());
  auto& nodes = kv.nodes[lane];
  std::int32_t& computed = kv.computed[lane];
  while (computed == static_cast<std::int32_t>(nodes.size()) * size && computed + size <= end) {
    const auto hit = cache_.find(lane, last_node(kv, lane), tokens.subspan(computed, size));
    // A block whose slab goes to the other lane once the batch in flight has retired is left.
    if (!hit || !pool_.open_to(pool_.slab_of(lane, hit->block), lane)) return;
    if (pool_.references(lane, hit->block) == BlockPool::kCached) {
      pool_.revive(lane, hit->block);
      cache_.unpark(lane, hit->block);
    } else {
      pool_.retain(lane, hit->block);
    }
    kv.blocks[lane].push_back(hit->block);
    nodes.push_back(hit->node);
    computed += size;
    ++counters_.hits[lane];
  }
}

std::int32_t KvCache::live_prefix(int model, std::span<const Token> tokens) const {
  if (!prefix_cache_) return 0;
  const std::int32_t full = static_cast<std::int32_t>(tokens.size()) / block_tokens_;
  auto parent = PrefixCache::kRoot;
  for (std::int32_t blocks = 0; blocks < full; ++blocks) {
    const auto hit =
        cache_.find(model, parent, tokens.subspan(blocks * block_tokens_, block_tokens_));
    if (!hit || pool_.references(model, hit->block) == BlockPool::kCached) return blocks;
    parent = hit->node;
  }
  return full;
}

void KvCache::share_prompt(KvState& to, const KvState& from, int lane, std::int32_t last,
                           KvPlan& plan) {
  const std::int32_t size = block_tokens_;
  std::int32_t& computed = to.computed[lane];
  auto& blocks = to.blocks[lane];
  std::int32_t rows = std::min(from.computed[lane], last);
  for (std::int32_t row = computed; row < rows; row += size)
    if (!pool_.open_to(pool_.slab_of(lane, from.blocks[lane][row / size]), lane)) rows = row;
  for (; computed + size <= rows; computed += size, ++counters_.shared[lane]) {
    blocks.push_back(from.blocks[lane][computed / size]);
    pool_.retain(lane, blocks.back());
  }
  if (rows < last || computed == rows || plan.short_of_memory) return;
  const auto copy = take_block(lane, plan);
  if (!copy) return;
  const BlockId source = plan.origin(from.blocks[lane][computed / size]);
  pool_.retain(lane, source);  // until the commit
  plan.add_copy(source, *copy);
  blocks.push_back(*copy);
  computed = rows;
  ++counters_.copied[lane];
}

void KvCache::register_blocks(KvState& kv, int model, std::span<const Token> tokens) {
  if (!prefix_cache_) return;
  const std::int32_t size = block_tokens_, end = static_cast<std::int32_t>(tokens.size());
  auto& nodes = kv.nodes[model];
  for (auto i = static_cast<std::int32_t>(nodes.size()); (i + 1) * size <= end; ++i)
    nodes.push_back(cache_.insert(model, last_node(kv, model), tokens.subspan(i * size, size),
                                  kv.blocks[model][i]));
}

void KvCache::forget_blocks(const KvState& kv, int model) {
  for (const BlockId block : kv.blocks[model]) cache_.forget(model, block);
  for (const auto node : kv.nodes[model]) drop_slot(node);
}

// Free slabs go before the cache: a cached block may save a prefill, and slabs that hold nothing
// else are lent all the same.
std::optional<BlockId> KvCache::take_block(int lane, KvPlan& plan) {
  if (const auto block = pool_.allocate(lane)) return block;
  const auto& own = cache_.parked(lane);
  if (!own.empty()) {
    if (lane == kLarge) save(lane, own.front(), plan);
    evict(lane, own.front());
    return pool_.allocate(lane);
  }
  const int other = 1 - lane;
  for (const BlockId parked : cache_.parked(other)) {
    const SlabId slab = pool_.slab_of(other, parked);
    // Before a fence (of void rows) has passed, dropping the cache would give no block yet.
    if (!pool_.lendable(slab, lane)) continue;
    save_slab(slab, lane, plan);
    empty_slab(slab, other);
    return pool_.allocate(lane);
  }
  return std::nullopt;
}

void KvCache::keep_rows(KvState& kv, int model, std::int32_t rows) {
  const auto& blocks = kv.blocks[model];
  auto& nodes = kv.nodes[model];
  rows = std::min(kv.computed[model], rows);
  const auto full = static_cast<std::size_t>(rows / block_tokens_);
  // A block that other sequences may read is never written again: it is kept whole or given back.
  if (rows % block_tokens_ != 0 &&
      (full < nodes.size() || pool_.references(model, blocks[full]) > 1))
    rows = static_cast<std::int32_t>(full) * block_tokens_;
  kv.computed[model] = rows;
  keep_blocks(kv, model, rows);
  nodes.resize(std::min(nodes.size(), full));
}

void KvCache::keep_blocks(KvState& kv, int model, std::int32_t rows) {
  auto& blocks = kv.blocks[model];
  for (const auto keep = static_cast<std::size_t>(blocks_for(rows)); blocks.size() > keep;
       blocks.pop_back()) {
    // Another lane may have the slab only when the last tick that used the block has retired.
    if (kv.last_tick[model] >= 0) pool_.fence(model, blocks.back(), kv.last_tick[model]);
    give_back(model, blocks.back());
  }
}

void KvCache::retire(int lane, const KvPlan& plan, bool done) {
  pool_.retire(lane, plan.tick);
  land_parking(plan, done);
  for (std::int32_t copy = 0; copy < plan.copied; ++copy) give_back(lane, plan.copies[2 * copy]);
}

// Drops one reference. The last one leaves a registered block cached, unless its slab is being
// emptied for the other model.
void KvCache::give_back(int model, BlockId block) {
  const bool last = pool_.references(model, block) == 1;
  const bool keep =
      last && cache_.holds(model, block) && pool_.open_to(pool_.slab_of(model, block), model);
  if (last && !keep) cache_.forget(model, block);
  pool_.release(model, block, keep);
  if (keep) cache_.park(model, block);
}

void KvCache::evict(int model, BlockId block) {
  cache_.forget(model, block);
  pool_.drop(model, block);
  ++counters_.evictions[model];
}

void KvCache::empty_slab(SlabId slab, int model) {
  for (const BlockId block : pool_.cached_blocks(slab)) evict(model, block);
}

void KvCache::check_integrity() const {
  const auto expect = [](bool holds, const char* what) {
    if (!holds) throw std::logic_error(what);
  };
  pool_.check_integrity();
  host_.check_integrity();
  for (const auto slot : host_.used())
    expect(cache_.slot(host_.node(slot)) == slot, "the node of a host slot has another slot");
  expect(cache_.on_host() == host_.used().size(), "what lies in host memory has no slot");
  for (int model = 0; model < kModels; ++model) {
    for (const BlockId block : cache_.parked(model))
      expect(pool_.references(model, block) == BlockPool::kCached, "a parked block is not cached");
    expect(static_cast<std::int64_t>(cache_.parked(model).size()) == pool_.cached(model),
           "a cached block is not parked");
  }
}

}  // namespace steer
