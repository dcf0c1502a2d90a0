// A lane's plan: preallocated int32 buffers that the runner reads in place.
#pragma once

#include <cstdint>
#include <vector>

#include "schedule/sequence.h"

namespace steer {

// Plans of a lane that can be in flight at once.
inline constexpr int kDepth = 2;

// One tick of one lane. Buffers keep their addresses for the scheduler's lifetime; the contents
// are valid from the plan() that fills them to the next one that does.
struct Plan {
  std::int32_t sequences = 0;  // rows of the per-sequence buffers
  std::int32_t rows = 0;       // rows of the per-token buffers
  Tick tick = -1;
  bool in_flight = false;        // planned and not yet committed
  bool short_of_memory = false;  // some runnable sequence got no memory; plan again after a commit

  std::vector<std::int32_t> tokens;     // [rows] token ids; -1 - i: what sequence i of the lane's
                                        // plan before this one samples
  std::vector<std::int32_t> positions;  // [rows] position in the sequence
  std::vector<std::int32_t> slots;      // [rows] where its KV goes: block * block_tokens + offset
  std::vector<std::int32_t> starts;     // [sequences + 1] first row of each sequence
  std::vector<std::int32_t> contexts;   // [sequences] keys visible to its last row
  std::vector<std::int32_t> samples;    // [sequences] 1 if its last row's logits are sampled
  std::vector<std::int32_t> attempts;   // [sequences] keys the random draw
  std::vector<std::int32_t> blocks;     // [sequences, table_width] block ids, padded with 0
  std::vector<std::int64_t> ids;        // [sequences] sequence ids
  std::vector<std::int32_t> copies;     // [copied, (from, to)] blocks to copy whole, in any order,
  std::int32_t copied = 0;              // before the pass: no `to` is in another pair. `from` is
                                        // held until the commit
  // Copies that the tick makes first, in this order, if there is host memory; [.., 2] each.
  std::vector<std::int32_t> saves;     // [saved, (block of the large model, host slot)]
  std::vector<std::int32_t> restores;  // [restored, (host slot, block)]
  std::int32_t saved = 0;
  std::int32_t restored = 0;
  std::vector<Sequence*> members;  // [sequences] owned by the scheduler; null: rows are void

  Plan(std::int32_t max_rows, std::int32_t max_sequences, std::int32_t table_width,
       std::int32_t host_slots);
  void clear();
  // Appends `span` rows of `sequence` after those that are computed or in flight; if none are in
  // flight, these are now. The caller ensures that they fit.
  void add(Sequence& sequence, int lane, std::int32_t span, std::int32_t block_tokens);
  // At most one per sequence. No other copy may write `from`: see `origin`.
  void add_copy(BlockId from, BlockId to);
  // The block itself, or the one from which this plan fills it.
  BlockId origin(BlockId block) const;
  // At most as many of each as there are host slots.
  void add_save(BlockId from, std::int32_t slot);
  void add_restore(std::int32_t slot, BlockId to);
  bool may_restore() const { return 2 * static_cast<std::size_t>(restored) < restores.size(); }

  std::int32_t table_width;
};

}  // namespace steer
