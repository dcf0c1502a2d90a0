// Products of weights and a few (or many) rows of activations.
#pragma once

#include "simd.h"

namespace steer::cpu {
namespace {

constexpr Index kCacheBytes = 24 * 1024;  // of activations that stay in the L1 cache
constexpr Index kStrip = 16;              // rows of weights that meet them before the next ones do

// Rows of x that a tile takes, with kTileRows of weights: as many sums as there are registers for,
// beside the operands and, where bf16 is widened, a mask.
constexpr int kTileRows = 4;
template <typename T>
constexpr int kWide = kLanes >= 16 ? 4 : 2;
template <>
constexpr int kWide<float> = kLanes == 8 ? 3 : kWide<Bf16>;

// One step of all sums of a tile: the whole operands from k on, or the `rest` that is left of them.
template <typename T, int ROWS, int COLUMNS, bool WHOLE>
inline void step(const T* w, Index w_stride, const T* x, Index x_stride, Index rest, Floats* sums) {
  STEER_UNROLL
  for (int part = 0; part < kParts<T>; ++part) {
    Operand<T> right[COLUMNS];
    STEER_UNROLL
    for (int c = 0; c < COLUMNS; ++c) right[c] = take<T, WHOLE>(x + c * x_stride, rest, part);
    STEER_UNROLL
    for (int r = 0; r < ROWS; ++r) {
      const Operand<T> left = take<T, WHOLE>(w + r * w_stride, rest, part);
      STEER_UNROLL
      for (int c = 0; c < COLUMNS; ++c)
        sums[c * ROWS + r] = dot(sums[c * ROWS + r], left, right[c]);
    }
  }
}

// ROWS x COLUMNS outputs. One accumulator an output, so that its order of summation is the same in
// tiles of any shape. AHEAD: asks for as many bytes behind these weights as it takes of them.
template <typename T, int ROWS, int COLUMNS, bool AHEAD>
inline void tile(const T* w, Index w_stride, const T* x, Index x_stride, Index size, float* y,
                 Index y_stride) {
  constexpr int kSums = (ROWS * COLUMNS + kLanes - 1) / kLanes * kLanes;
  Floats sums[kSums] = {};
  const char* next = reinterpret_cast<const char*>(w + ROWS * w_stride);
  Index k = 0;
  for (; k + kStep<T> <= size; k += kStep<T>, next += ROWS * STEER_VECTOR) {
    if constexpr (AHEAD) {
      STEER_UNROLL
      for (int at = 0; at < ROWS * STEER_VECTOR; at += 64) __builtin_prefetch(next + at);
    }
    step<T, ROWS, COLUMNS, true>(w + k, w_stride, x + k, x_stride, 0, sums);
  }
  if (k < size) step<T, ROWS, COLUMNS, false>(w + k, w_stride, x + k, x_stride, size - k, sums);
  float found[kSums];
  STEER_UNROLL
  for (int i = 0; i < kSums; i += kLanes) store(found + i, sum_each(sums + i));
  STEER_UNROLL
  for (int c = 0; c < COLUMNS; ++c) {
    STEER_UNROLL
    for (int r = 0; r < ROWS; ++r) y[c * y_stride + r] = found[c * ROWS + r];
  }
}

// All rows of w times COLUMNS rows of x.
template <typename T, int ROWS, int COLUMNS, bool AHEAD>
inline void strip(const T* w, Index w_stride, Index rows, const T* x, Index x_stride, Index size,
                  float* y, Index y_stride) {
  Index r = 0;
  for (; r + ROWS <= rows; r += ROWS)
    tile<T, ROWS, COLUMNS, AHEAD>(w + r * w_stride, w_stride, x, x_stride, size, y + r, y_stride);
  for (; r < rows; ++r)
    tile<T, 1, COLUMNS, false>(w + r * w_stride, w_stride, x, x_stride, size, y + r, y_stride);
}

// All rows of w times `columns` rows of x, at most COLUMNS.
template <typename T, int COLUMNS, bool AHEAD>
inline void strip_of(Index columns, const T* w, Index w_stride, Index rows, const T* x,
                     Index x_stride, Index size, float* y, Index y_stride) {
  constexpr int kRows = COLUMNS == 1 ? kLanes : kTileRows;
  if (columns == COLUMNS)
    return strip<T, kRows, COLUMNS, AHEAD>(w, w_stride, rows, x, x_stride, size, y, y_stride);
  if constexpr (COLUMNS > 1)
    strip_of<T, COLUMNS - 1, AHEAD>(columns, w, w_stride, rows, x, x_stride, size, y, y_stride);
}

// Only the first rows of x wait for weights: the others find them in the cache.
template <typename T>
inline void products(const T* w, Index w_stride, Index rows, const T* x, Index x_stride,
                     Index columns, Index size, float* y, Index y_stride) {
  const auto taken = [&](Index c) { return columns - c < kWide<T> ? columns - c : kWide<T>; };
  strip_of<T, kWide<T>, true>(taken(0), w, w_stride, rows, x, x_stride, size, y, y_stride);
  for (Index c = kWide<T>; c < columns; c += kWide<T>)
    strip_of<T, kWide<T>, false>(taken(c), w, w_stride, rows, x + c * x_stride, x_stride, size,
                                 y + c * y_stride, y_stride);
}

// Blocks of activations that fit the L1 cache meet a few rows of weights at a time.
template <typename T>
void linear(const T* w, Index rows, const T* x, Index x_stride, Index columns, Index size, float* y,
            Index y_stride) {
  const Index fit = kCacheBytes / (size * static_cast<Index>(sizeof(T)) + 1);
  const Index block = fit < kWide<T> ? kWide<T> : fit / kWide<T> * kWide<T>;
  for (Index c = 0; c < columns; c += block)
    for (Index r = 0; r < rows; r += kStrip)
      products(w + r * size, size, rows - r < kStrip ? rows - r : kStrip, x + c * x_stride,
               x_stride, columns - c < block ? columns - c : block, size, y + c * y_stride + r,
               y_stride);
}

}  // namespace
}  // namespace steer::cpu
