// The KV of one sequence on both models.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "kv/prefix_cache.h"
#include "types.h"

namespace steer {

struct KvState {
  std::array<std::int32_t, kModels> computed{};  // rows of KV that are there
  std::array<std::int32_t, kModels> highest{};   // rows ever computed: below is recompute
  std::array<Tick, kModels> last_tick{-1, -1};   // the last one that uses it
  std::array<std::vector<BlockId>, kModels> blocks;
  std::array<std::vector<PrefixCache::Node>, kModels> nodes;  // of the leading full blocks
};

}  // namespace steer
