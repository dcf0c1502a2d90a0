// The operations between the products: norm, rotation, gated activation.
#pragma once

#include "simd.h"

namespace steer::cpu {
namespace {

inline float sum_of_squares(const float* x, Index size) {
  Floats total = {};
  Index i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    const Floats v = load<Floats>(x + i);
    total += v * v;
  }
  const Floats v = load_part<Floats>(x + i, (size - i) * 4);
  return sum(total + v * v);
}

inline float norm_scale(const float* x, float eps, Index size) {
  return 1.0f / __builtin_sqrtf(sum_of_squares(x, size) / static_cast<float>(size) + eps);
}

template <typename T>
void rms_norm(const float* x, const T* weight, float eps, Index size, T* out) {
  const float scale = norm_scale(x, eps, size);
  for (Index i = 0; i < size; ++i) put(out + i, x[i] * scale * to_float(weight[i]));
}

inline Floats silu_mul(Floats gate, Floats up) { return gate / (1.0f + exponential(-gate)) * up; }

template <typename T>
inline void put_all(T* to, Floats from, Index count) {
  for (Index j = 0; j < count; ++j) put(to + j, from[j]);
}

template <typename T>
void silu_mul(const float* gate, const float* up, Index size, T* out) {
  Index i = 0;
  for (; i + kLanes <= size; i += kLanes)
    put_all(out + i, silu_mul(load<Floats>(gate + i), load<Floats>(up + i)), kLanes);
  if (i == size) return;
  const Floats g = load_part<Floats>(gate + i, (size - i) * 4);
  put_all(out + i, silu_mul(g, load_part<Floats>(up + i, (size - i) * 4)), size - i);
}

template <typename T>
void shift(const float* x, const T* bias, Index size, T* out) {
  for (Index i = 0; i < size; ++i) put(out + i, bias ? x[i] + to_float(bias[i]) : x[i]);
}

template <typename T>
void widen(const T* x, Index size, float* out) {
  for (Index i = 0; i < size; ++i) out[i] = to_float(x[i]);
}

template <typename T>
void rope(const float* x, const T* bias, const T* norm, float eps, const float* turn, Index half,
          T* out) {
  float head[kLongestHead];  // its length is checked where the decoder is made
  const Index size = 2 * half;
  for (Index i = 0; i < size; ++i) head[i] = bias ? x[i] + to_float(bias[i]) : x[i];
  if (norm) {
    const float scale = norm_scale(head, eps, size);
    for (Index i = 0; i < size; ++i) head[i] *= scale * to_float(norm[i]);
  }
  const float *cosine = turn, *sine = turn + half;
  for (Index i = 0; i < half; ++i) {
    const float first = head[i], second = head[i + half];
    put(out + i, first * cosine[i] - second * sine[i]);
    put(out + i + half, second * cosine[i] + first * sine[i]);
  }
}

}  // namespace
}  // namespace steer::cpu
