// What a tick does to KV before its forward pass.
#pragma once

#include <cstdint>
#include <vector>

#include "types.h"

namespace steer {

struct KvPlan {
  Tick tick = -1;
  bool short_of_memory = false;  // some runnable sequence got no memory; plan again after a commit

  std::vector<std::int32_t> copies;  // [copied, (from, to)] blocks to copy whole, in any order,
  std::int32_t copied = 0;           // before the pass: no `to` is in another pair. `from` is
                                     // held until the commit
  // Copies that the tick makes first, in this order, if there is host memory; [.., 2] each.
  std::vector<std::int32_t> saves;     // [saved, (block of the large model, host slot)]
  std::vector<std::int32_t> restores;  // [restored, (host slot, block)]
  std::int32_t saved = 0;
  std::int32_t restored = 0;

  KvPlan(std::int32_t max_sequences, std::int32_t host_slots);
  void clear(Tick next);
  // At most one per sequence. No other copy may write `from`: see `origin`.
  void add_copy(BlockId from, BlockId to);
  // The block itself, or the one from which this plan fills it.
  BlockId origin(BlockId block) const;
  // At most as many of each as there are host slots.
  void add_save(BlockId from, std::int32_t slot);
  void add_restore(std::int32_t slot, BlockId to);
  bool may_restore() const { return 2 * static_cast<std::size_t>(restored) < restores.size(); }
};

}  // namespace steer
