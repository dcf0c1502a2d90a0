// Statistics of a row of logits; the formulas of kernels/reference/confidence.py.
#pragma once

#include "simd.h"

namespace steer::cpu {
namespace {

constexpr float kInfinity = __builtin_inff();
constexpr float kMostLogOdds = 87.0f;  // beyond it the rest is no normal number

struct Stretch {
  float top = -kInfinity;  // largest
  bool nan = false;
};

inline Stretch scan(const float* z, Index begin, Index end) {
  Floats top = splat(-kInfinity);
  Ints nan = {};
  Index i = begin;
  for (; i + kLanes <= end; i += kLanes) {
    const Floats v = load<Floats>(z + i);
    top = maximum(v, top);
    nan |= v != v;
  }
  Stretch found{largest(top)};
  for (int lane = 0; lane < kLanes; ++lane) found.nan |= nan[lane] != 0;
  for (; i < end; ++i) {
    found.top = z[i] > found.top ? z[i] : found.top;
    found.nan |= z[i] != z[i];
  }
  return found;
}

struct Sums {
  float weights = 0, surprise = 0;  // sums of e^(z - top), and of that times (z - top)
};

// Adds a stretch in blocks: a sum of blocks loses less than one long chain.
inline void add(const float* z, Index begin, Index end, float top, Sums& sums) {
  constexpr Index kBlock = 64 * kLanes;
  for (Index block = begin; block < end; block += kBlock) {
    const Index stop = block + kBlock < end ? block + kBlock : end;
    Floats weights = {}, surprise = {};
    for (Index i = block; i < stop; i += kLanes) {
      const bool whole = i + kLanes <= stop;
      Floats shifted = whole ? load<Floats>(z + i) : load_part<Floats>(z + i, (stop - i) * 4);
      shifted -= top;
      if (!whole)
        for (Index lane = stop - i; lane < kLanes; ++lane) shifted[lane] = -kInfinity;
      const Floats weight = exponential(shifted);
      weights += weight;
      surprise += choose(weight > 0.0f, weight * shifted, Floats{});
    }
    sums.weights += sum(weights);
    sums.surprise += sum(surprise);
  }
}

inline void confidence(const float* z, Index size, Statistics& out) {
  const Stretch all = scan(z, 0, size);
  out = {};
  out.valid = !all.nan && all.top > -kInfinity && all.top < kInfinity;
  if (!out.valid) return;
  Index index = 0;
  while (z[index] != all.top) ++index;
  // The maximum's own term is exactly 1: it is kept out of the sum, so that rounding does not lose
  // the rest.
  Sums sums;
  add(z, 0, index, all.top, sums);
  add(z, index + 1, size, all.top, sums);
  const float below = scan(z, 0, index).top, above = scan(z, index + 1, size).top;
  const float log_total = __builtin_log1pf(sums.weights);
  out.entropy = log_total - sums.surprise / (1.0f + sums.weights);
  out.max_prob = 1.0f / (1.0f + sums.weights);
  const float second = below > above ? below : above;
  const float odds = -__builtin_logf(sums.weights);
  out.log_odds = second == -kInfinity ? kInfinity : odds < kMostLogOdds ? odds : kMostLogOdds;
  out.margin = all.top - second;
  out.max_logit = all.top;
  out.logsumexp = all.top + log_total;
  out.argmax = index;
}

}  // namespace
}  // namespace steer::cpu
