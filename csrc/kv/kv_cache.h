// The KV of all sequences: which blocks hold it, which of them sequences share, and what stays when
// no sequence holds it any more, in the arena (the prefix cache) or in host memory.
//
// It knows a sequence as some tokens and its KvState, and no order of sequences: the scheduler
// decides which of them gives up KV for which other one (schedule/memory.cpp).
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>

#include "kv/block_pool.h"
#include "kv/host_pool.h"
#include "kv/kv_plan.h"
#include "kv/kv_state.h"
#include "kv/prefix_cache.h"
#include "types.h"

namespace steer {

struct KvCounters {
  std::array<std::int64_t, kModels> hits{};       // blocks found in the prefix cache
  std::array<std::int64_t, kModels> evictions{};  // cached blocks dropped to make room
  std::array<std::int64_t, kModels> shared{};     // blocks of a prompt taken over from a sample
  std::array<std::int64_t, kModels> copied{};     // the same, partly filled: copied
  std::int64_t saved = 0;                         // blocks copied to host memory
  std::int64_t restored = 0;                      // and back
};

class KvCache {
 public:
  using BlockSource = std::function<std::optional<BlockId>()>;

  // Throws std::invalid_argument like its pools. `prefix_cache`: share full settled blocks.
  KvCache(SlabId slabs, std::array<std::int32_t, kModels> slots, std::int32_t block_tokens,
          bool prefix_cache, std::int32_t host_blocks);

  std::int32_t blocks_for(std::int32_t rows) const {
    return (rows + block_tokens_ - 1) / block_tokens_;
  }
  const BlockPool& pool() const { return pool_; }
  const HostPool& host() const { return host_; }
  const KvCounters& counters() const { return counters_; }

  // What sequences have in common. `tokens` are those whose rows may be taken over, or registered,
  // from the sequence's first one on.
  //
  // Takes over full blocks with the rows that this sequence would compute next, whichever sequence
  // computed them.
  void reuse_prefix(KvState& kv, int lane, std::span<const Token> tokens);
  // Leading blocks that a sequence without blocks would share with running ones.
  std::int32_t live_prefix(int model, std::span<const Token> tokens) const;
  // Takes over from another sequence the rows of their common prompt before `last`: full blocks are
  // shared, the partly filled one is copied by the plan, as `to` is about to write to it.
  void share_prompt(KvState& to, const KvState& from, int lane, std::int32_t last, KvPlan& plan);
  // Registers the full blocks in the prefix cache.
  void register_blocks(KvState& kv, int model, std::span<const Token> tokens);
  // The content of these blocks is not to be trusted: no later sequence may find them.
  void forget_blocks(const KvState& kv, int model);

  // A block that costs no sequence its KV, nor the cache a block.
  std::optional<BlockId> free_block(int lane) { return pool_.allocate(lane); }
  // A block that costs no sequence its KV.
  std::optional<BlockId> take_block(int lane, KvPlan& plan);
  // Gives a sequence blocks for `rows` rows from `first` on, as long as `take()` has some; returns
  // the rows that it has blocks for, which may be below 0.
  template <typename Take>
  std::int32_t extend(KvState& kv, int lane, std::int32_t first, std::int32_t rows,
                      Take take) const;
  // Frees the KV past the first `rows` rows. The batch in flight must not hold the sequence.
  void keep_rows(KvState& kv, int model, std::int32_t rows);
  // Releases the blocks that hold none of the first `rows` rows.
  void keep_blocks(KvState& kv, int model, std::int32_t rows);
  // A plan of the lane has retired. `done`: its tick has run.
  void retire(int lane, const KvPlan& plan, bool done);

  // A slab that is emptied for `lane`: closed to the other one until open_slabs(lane).
  void close_slab(SlabId slab, int lane) { pool_.reserve(slab, lane); }
  void open_slabs(int lane) { pool_.unreserve(lane); }
  // Drops the cached blocks of a slab of `model`.
  void empty_slab(SlabId slab, int model);

  // Host memory, see parking.cpp.
  //
  // Saves what a slab of the large model holds, if the small lane takes it. To be called only if
  // the lane can have it at once when the sequences that hold its blocks give them up.
  void save_slab(SlabId slab, int lane, KvPlan& plan);
  // Could the next of the large model's rows before `end` be restored?
  bool is_parked(const KvState& kv, std::span<const Token> tokens, std::int32_t end) const {
    return next_on_host(kv, tokens, end).has_value();
  }
  // Restores the next blocks with rows before `end` from host memory, and takes over those in
  // between; returns the number of restored blocks. A block for the row after them is taken first:
  // a sequence with copies has a row in the plan.
  std::int32_t restore(KvState& kv, std::span<const Token> tokens, std::int32_t end, KvPlan& plan,
                       const BlockSource& take);

  // Checks the records of the pools, and that they agree. Throws std::logic_error.
  void check_integrity() const;

 private:
  PrefixCache::Node last_node(const KvState& kv, int model) const {
    return kv.nodes[model].empty() ? PrefixCache::kRoot : kv.nodes[model].back();
  }
  void give_back(int model, BlockId block);
  void evict(int model, BlockId block);

  // parking.cpp
  void save(int lane, BlockId block, KvPlan& plan);
  std::optional<PrefixCache::HostHit> next_on_host(const KvState& kv, std::span<const Token> tokens,
                                                   std::int32_t end) const;
  void touch_found(const KvState& kv, std::span<const Token> tokens);
  void land_parking(const KvPlan& plan, bool done);
  void drop_slot(PrefixCache::Node node);

  std::int32_t block_tokens_;
  bool prefix_cache_;
  BlockPool pool_;
  PrefixCache cache_;
  HostPool host_;
  KvCounters counters_;
};

template <typename Take>
std::int32_t KvCache::extend(KvState& kv, int lane, std::int32_t first, std::int32_t rows,
                             Take take) const {
  auto& blocks = kv.blocks[lane];
  while (static_cast<std::int32_t>(blocks.size()) < blocks_for(first + rows)) {
    const std::optional<BlockId> block = take();
    if (!block) break;
    blocks.push_back(*block);
  }
  return std::min(rows, static_cast<std::int32_t>(blocks.size()) * block_tokens_ - first);
}

}  // namespace steer
