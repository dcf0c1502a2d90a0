// Vectors of STEER_VECTOR bytes, for the one kernel source that every instruction set compiles.
//
// Everything here and in what includes it is in an unnamed namespace and calls no function template
// of the standard library: code of one instruction set must never be linked into another's place.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels.h"

#ifdef __SSE2__
#include <immintrin.h>
#endif

// Loops over registers: left to itself, GCC keeps arrays of vectors in memory.
#define STEER_UNROLL _Pragma("GCC unroll 16")

namespace steer::cpu {
namespace {

using Index = std::int64_t;
constexpr int kLanes = STEER_VECTOR / 4;

using Floats = float __attribute__((vector_size(STEER_VECTOR)));
using Words = std::uint32_t __attribute__((vector_size(STEER_VECTOR)));
using Ints = std::int32_t __attribute__((vector_size(STEER_VECTOR)));

template <typename V>
inline V load(const void* from) {
  V v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}

// The first `bytes` bytes, and zeros.
template <typename V>
inline V load_part(const void* from, Index bytes) {
  V v = {};
  __builtin_memcpy(&v, from, static_cast<std::size_t>(bytes));
  return v;
}

inline void store(float* to, Floats v) { __builtin_memcpy(to, &v, sizeof v); }
inline void store_part(float* to, Floats v, Index count) {
  __builtin_memcpy(to, &v, static_cast<std::size_t>(count) * sizeof(float));
}

inline Floats splat(float x) { return Floats{} + x; }
inline Floats as_floats(Words w) { return reinterpret_cast<Floats>(w); }
inline Words as_words(Floats f) { return reinterpret_cast<Words>(f); }
inline Floats choose(Ints mask, Floats yes, Floats no) { return mask ? yes : no; }
inline Floats maximum(Floats a, Floats b) { return a > b ? a : b; }

inline float to_float(float x) { return x; }
inline float to_float(Bf16 x) {
  const std::uint32_t word = static_cast<std::uint32_t>(x.bits) << 16;
  float y;
  __builtin_memcpy(&y, &word, sizeof y);
  return y;
}

// Rounds to nearest, ties to even; NaN stays NaN.
inline std::uint32_t round_bf16(std::uint32_t word) {
  const std::uint32_t rounded = (word + 0x7fffu + ((word >> 16) & 1u)) >> 16;
  return (word & 0x7fffffffu) > 0x7f800000u ? (word >> 16) | 0x40u : rounded;
}
inline void put(float* to, float x) { *to = x; }
inline void put(Bf16* to, float x) {
  std::uint32_t word;
  __builtin_memcpy(&word, &x, sizeof word);
  to->bits = static_cast<std::uint16_t>(round_bf16(word));
}

// Operands of one step of a dot product: kStep<T> elements of type T. Two bf16 share a word; as all
// operands are split alike, the halves never need to be put back in order.
template <typename T>
constexpr int kStep = STEER_VECTOR / static_cast<int>(sizeof(T));

// The number of operands of a step, one after the other: bf16 that is widened comes in halves.
#ifdef STEER_BF16_DOT
template <typename T>
constexpr int kParts = 1;
#else
template <typename T>
constexpr int kParts = static_cast<int>(4 / sizeof(T));
#endif

inline Floats low_half(Words w) { return as_floats(w << 16); }
inline Floats high_half(Words w) { return as_floats(w & 0xffff0000u); }

template <typename T>
struct Operand {
  Floats v;
};
inline Operand<float> operand(const float*, Words w, int) { return {as_floats(w)}; }
template <typename T>
inline Floats dot(Floats sum, Operand<T> a, Operand<T> b) {
  return sum + a.v * b.v;
}
#ifdef STEER_BF16_DOT
template <>
struct Operand<Bf16> {
  __m512bh v;
};
inline Operand<Bf16> operand(const Bf16*, Words w, int) { return {load<__m512bh>(&w)}; }
inline Floats dot(Floats sum, Operand<Bf16> a, Operand<Bf16> b) {
  return (Floats)_mm512_dpbf16_ps((__m512)sum, a.v, b.v);
}
#else
inline Operand<Bf16> operand(const Bf16*, Words w, int part) {
  return {part ? high_half(w) : low_half(w)};
}
#endif

// Part of a step's elements: of all, or of the `rest` that are left, then zeros.
template <typename T, bool WHOLE>
inline Operand<T> take(const T* from, Index rest, int part) {
  if constexpr (WHOLE) return operand(from, load<Words>(from), part);
  return operand(from, load_part<Words>(from, rest * static_cast<Index>(sizeof(T))), part);
}

template <int... I>
struct Sequence {};
template <int N, int... I>
struct Count : Count<N - 1, N - 1, I...> {};
template <int... I>
struct Count<0, I...> {
  using type = Sequence<I...>;
};

// Sums of neighbouring lanes within each 16 bytes: two of `a`, then two of `b`.
template <int... I>
inline Floats add_pairs(Floats a, Floats b, Sequence<I...>) {
  return __builtin_shufflevector(a, b, (I / 4 * 4 + I % 2 * 2 + I % 4 / 2 * kLanes)...) +
         __builtin_shufflevector(a, b, (I / 4 * 4 + I % 2 * 2 + I % 4 / 2 * kLanes + 1)...);
}

// Sums of neighbouring 16 bytes, those of `a` before those of `b`.
template <int... I>
inline Floats add_quads(Floats a, Floats b, Sequence<I...>) {
  return __builtin_shufflevector(a, b, (I / 4 * 8 + I % 4)...) +
         __builtin_shufflevector(a, b, (I / 4 * 8 + I % 4 + 4)...);
}

// Lane i of the result is the sum over the lanes of parts[i]; the parts are overwritten. Lanes of
// 16 bytes first: shuffles across them cost several times as much.
inline Floats sum_each(Floats* parts) {
  constexpr typename Count<kLanes>::type lanes;
  STEER_UNROLL
  for (int i = 0; i < kLanes / 2; ++i) parts[i] = add_pairs(parts[2 * i], parts[2 * i + 1], lanes);
  STEER_UNROLL
  for (int i = 0; i < kLanes / 4; ++i) parts[i] = add_pairs(parts[2 * i], parts[2 * i + 1], lanes);
  STEER_UNROLL
  for (int i = 0; i < kLanes / 8; ++i) parts[i] = add_quads(parts[2 * i], parts[2 * i + 1], lanes);
  STEER_UNROLL
  for (int i = 0; i < kLanes / 16; ++i) parts[i] = add_quads(parts[2 * i], parts[2 * i + 1], lanes);
  return parts[0];
}

inline float sum(Floats v) {
  float lanes[kLanes];
  store(lanes, v);
  for (int width = kLanes / 2; width; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  return lanes[0];
}

inline float largest(Floats v) {
  float lanes[kLanes];
  store(lanes, v);
  float top = lanes[0];
  for (int i = 1; i < kLanes; ++i) top = lanes[i] > top ? lanes[i] : top;
  return top;
}

// e^x within 1e-7 of the result: 2^n * e^r with |r| <= ln(2)/2 and Taylor's polynomial of degree 7.
// Below -87.3 the result is 0, above 88.7 inf.
inline Floats exponential(Floats x) {
  const Ints tiny = x < -87.3f, huge = x > 88.7f;
  const Floats inside = choose(tiny | huge, Floats{}, x);
  const Floats shifted =
      inside * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: rounds to a whole number
  const Floats n = shifted - 12582912.0f;
  const Floats r = (inside - n * 0.693145752f) - n * 1.42860677e-6f;
  constexpr float kTerms[] = {1.0f / 5040, 1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1, 1};
  Floats p = {};
  for (float term : kTerms) p = p * r + term;
  const Words power = (as_words(shifted) + (127u - 0x4b400000u)) << 23;
  const Floats y = choose(huge, splat(__builtin_inff()), p * as_floats(power));
  return choose(x != x, x, choose(tiny, Floats{}, y));
}

}  // namespace
}  // namespace steer::cpu
