// Products of weights and a few (or many) rows of activations.
#pragma once

#include "simd.h"

namespace steer::cpu {
namespace {

constexpr Index kCacheBytes = 24 * 1024;  // of activations that stay in the L1 cache

// One step of all sums of a tile: the whole operands from k on, or the `rest` that is left of them.
template <typename T, int ROWS, int COLUMNS, bool WHOLE>
inline void step(const T* w, Index w_stride, const T* x, Index x_stride, Index rest, Floats* sums) {
  Operand<T> left[ROWS];
  for (int r = 0; r < ROWS; ++r) {
    const T* from = w + r * w_stride;
    left[r] = WHOLE ? take(from) : take_part(from, rest);
  }
  for (int c = 0; c < COLUMNS; ++c) {
    const T* from = x + c * x_stride;
    const Operand<T> right = WHOLE ? take(from) : take_part(from, rest);
    for (int r = 0; r < ROWS; ++r) sums[c * ROWS + r] = dot(sums[c * ROWS + r], left[r], right);
  }
}

// ROWS x COLUMNS outputs, at most a vector of them. One accumulator an output, so that its order of
// summation is the same in tiles of any shape.
template <typename T, int ROWS, int COLUMNS>
inline void tile(const T* w, Index w_stride, const T* x, Index x_stride, Index size, Index ahead,
                 float* y, Index y_stride) {
  static_assert(ROWS * COLUMNS <= kLanes);
  Floats sums[kLanes] = {};
  Index k = 0;
  for (; k + kStep<T> <= size; k += kStep<T>) {
    for (int r = 0; r < ROWS; ++r) __builtin_prefetch(w + r * w_stride + k + ahead);
    step<T, ROWS, COLUMNS, true>(w + k, w_stride, x + k, x_stride, 0, sums);
  }
  if (k < size) step<T, ROWS, COLUMNS, false>(w + k, w_stride, x + k, x_stride, size - k, sums);
  float found[kLanes];
  store(found, sum_each(sums));
  for (int c = 0; c < COLUMNS; ++c)
    for (int r = 0; r < ROWS; ++r) y[c * y_stride + r] = found[c * ROWS + r];
}

// All rows of w times COLUMNS rows of x.
template <typename T, int ROWS, int COLUMNS>
inline void strip(const T* w, Index w_stride, Index rows, const T* x, Index x_stride, Index size,
                  float* y, Index y_stride) {
  Index r = 0;
  for (; r + ROWS <= rows; r += ROWS)
    tile<T, ROWS, COLUMNS>(w + r * w_stride, w_stride, x, x_stride, size, ROWS * w_stride, y + r,
                           y_stride);
  for (; r < rows; ++r)
    tile<T, 1, COLUMNS>(w + r * w_stride, w_stride, x, x_stride, size, 0, y + r, y_stride);
}

constexpr int kWide = kLanes >= 16 ? 4 : 2;  // rows of x that a tile takes

template <typename T>
inline void products(const T* w, Index w_stride, Index rows, const T* x, Index x_stride,
                     Index columns, Index size, float* y, Index y_stride) {
  Index c = 0;
  for (; c + kWide <= columns; c += kWide)
    strip<T, kLanes / kWide, kWide>(w, w_stride, rows, x + c * x_stride, x_stride, size,
                                    y + c * y_stride, y_stride);
  for (; c < columns; ++c)
    strip<T, kLanes, 1>(w, w_stride, rows, x + c * x_stride, x_stride, size, y + c * y_stride,
                        y_stride);
}

// Blocks of activations that fit the L1 cache meet a few rows of weights at a time.
template <typename T>
void linear(const T* w, Index rows, const T* x, Index x_stride, Index columns, Index size, float* y,
            Index y_stride) {
  const Index fit = kCacheBytes / (size * static_cast<Index>(sizeof(T)) + 1);
  const Index block = fit < kWide ? kWide : fit / kWide * kWide;
  constexpr Index kStrip = kLanes;
  for (Index c = 0; c < columns; c += block)
    for (Index r = 0; r < rows; r += kStrip)
      products(w + r * size, size, rows - r < kStrip ? rows - r : kStrip, x + c * x_stride,
               x_stride, columns - c < block ? columns - c : block, size, y + c * y_stride + r,
               y_stride);
}

}  // namespace
}  // namespace steer::cpu
