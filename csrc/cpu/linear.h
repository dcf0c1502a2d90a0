// Products of weights and a few (or many) rows of activations.
#pragma once

#include "simd.h"

namespace steer::cpu {
namespace {

constexpr Index kCacheBytes = 24 * 1024;  // activations that stay in the L1 cache
constexpr Index kStrip = 16;              // rows of weights that use them before the next ones

// Rows of x in a tile, with kTileRows rows of weights: as many sums as there are registers for,
// besides the operands and, where bf16 is widened, a mask.
constexpr int kTileRows = 4;
template <typename T>
constexpr int kWide = kLanes >= 16 ? 4 : 2;
template <>
constexpr int kWide<float> = kLanes == 8 ? 3 : kWide<Bf16>;

// One step of all sums of a tile: whole operands from k on, or the `rest` elements that are left.
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

// A single row of x waits for memory, whose bandwidth is highest when it is read nearly in order:
// two rows of weights at a time. Where other passes prefetch the weights, as many sums as a vector
// has lanes keep the arithmetic units busy.
template <int SHARES>
constexpr int tile_rows(Index columns) {
  return columns > 1 ? kTileRows : SHARES == 1 ? 2 : kLanes;
}

// Bytes of weights that a tile prefetches in each step, if SHARES passes share the prefetching.
template <int ROWS, int SHARES>
constexpr Index kPace = SHARES ? ROWS * STEER_VECTOR / SHARES : 0;

// ROWS x COLUMNS outputs. One accumulator per output, so that its order of summation is the same in
// tiles of any shape. `next`: what is prefetched meanwhile.
template <typename T, int ROWS, int COLUMNS, int SHARES>
[[gnu::noinline]] void tile(const T* w, Index w_stride, const T* x, Index x_stride, Index size,
                            float* y, Index y_stride, const char* next) {
  constexpr int kSums = (ROWS * COLUMNS + kLanes - 1) / kLanes * kLanes;
  Floats sums[kSums] = {};
  Index k = 0;
  for (; k + kStep<T> <= size; k += kStep<T>, next += kPace<ROWS, SHARES>) {
    STEER_UNROLL
    for (int at = 0; at < kPace<ROWS, SHARES>; at += 64) __builtin_prefetch(next + at);
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
template <typename T, int ROWS, int COLUMNS, int SHARES>
inline void strip(const T* w, Index w_stride, Index rows, const T* x, Index x_stride, Index size,
                  float* y, Index y_stride, const char* next) {
  Index r = 0;
  for (; r + ROWS <= rows; r += ROWS, next += size / kStep<T> * kPace<ROWS, SHARES>)
    tile<T, ROWS, COLUMNS, SHARES>(w + r * w_stride, w_stride, x, x_stride, size, y + r, y_stride,
                                   next);
  for (; r < rows; ++r)
    tile<T, 1, COLUMNS, 0>(w + r * w_stride, w_stride, x, x_stride, size, y + r, y_stride, next);
}

// All rows of w times `columns` rows of x, at most COLUMNS.
template <typename T, int COLUMNS, int SHARES>
inline void strip_of(Index columns, const T* w, Index w_stride, Index rows, const T* x,
                     Index x_stride, Index size, float* y, Index y_stride, const char* next) {
  constexpr int kRows = tile_rows<SHARES>(COLUMNS);
  if (columns == COLUMNS)
    return strip<T, kRows, COLUMNS, SHARES>(w, w_stride, rows, x, x_stride, size, y, y_stride,
                                            next);
  if constexpr (COLUMNS > 1)
    strip_of<T, COLUMNS - 1, SHARES>(columns, w, w_stride, rows, x, x_stride, size, y, y_stride,
                                     next);
}

// The first SHARES passes of rows of x over these weights prefetch the weights after them, each its
// share, so that memory is always busy. A single pass prefetches the weights of its next tile.
template <typename T, int SHARES>
inline void passes(const T* w, Index w_stride, Index rows, const T* x, Index x_stride,
                   Index columns, Index size, float* y, Index y_stride) {
  const Index behind = SHARES > 1 ? rows : tile_rows<SHARES>(columns);
  const auto* next = reinterpret_cast<const char*>(w + behind * w_stride);
  const Index share = size / kStep<T> * rows * STEER_VECTOR / (SHARES ? SHARES : 1);
  const auto pass = [&](auto run, Index c) {
    const Index left = columns - c;
    run(left < kWide<T> ? left : kWide<T>, w, w_stride, rows, x + c * x_stride, x_stride, size,
        y + c * y_stride, y_stride, next);
  };
  Index c = 0;
  for (; c < SHARES * kWide<T>; c += kWide<T>, next += share)
    pass(strip_of<T, kWide<T>, SHARES>, c);
  for (; c < columns; c += kWide<T>) pass(strip_of<T, kWide<T>, 0>, c);
}

// All rows of w times all rows of x. `ask`: whether to prefetch the weights after these.
template <typename T>
inline void products(const T* w, Index w_stride, Index rows, const T* x, Index x_stride,
                     Index columns, Index size, float* y, Index y_stride, bool ask) {
  const auto run = !ask                     ? passes<T, 0>
                   : columns > 3 * kWide<T> ? passes<T, 4>
                   : columns > kWide<T>     ? passes<T, 2>
                                            : passes<T, 1>;
  run(w, w_stride, rows, x, x_stride, columns, size, y, y_stride);
}

// Multiplies blocks of activations that fit the L1 cache with a few rows of weights at a time.
template <typename T>
void linear(const T* w, Index rows, const T* x, Index x_stride, Index columns, Index size, float* y,
            Index y_stride) {
  const Index fit = kCacheBytes / (size * static_cast<Index>(sizeof(T)) + 1);
  const Index block = fit < kWide<T> ? kWide<T> : fit / kWide<T> * kWide<T>;
  for (Index c = 0; c < columns; c += block)
    for (Index r = 0; r < rows; r += kStrip)
      products(w + r * size, size, rows - r < kStrip ? rows - r : kStrip, x + c * x_stride,
               x_stride, columns - c < block ? columns - c : block, size, y + c * y_stride + r,
               y_stride, c == 0);
}

}  // namespace
}  // namespace steer::cpu
