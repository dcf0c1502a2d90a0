// Draws of a token from a row of logits: the filters' edge, then the race of what they keep.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace steer::cpu {

// How to draw. top_k 0, top_p 1 and min_p 0 are off; a temperature of 0 takes the likeliest.
struct Filters {
  std::int64_t top_k = 0;
  double top_p = 1, min_p = 0;
};

// The token that kernels/reference/sampling.py draws, unless two best scores are equal or a token
// lies at a filter's edge, as far as fp32 sums of the row's mass can tell. 0 for a row that holds
// NaN, +inf or nothing but -inf.
std::int64_t draw(const Kernels& kernels, const float* z, std::int64_t size, const RaceKey& key,
                  const Filters& filters);
std::int64_t draw(const Kernels& kernels, const double* z, std::int64_t size, const RaceKey& key,
                  const Filters& filters);

}  // namespace steer::cpu
