// The exponential race over a row of logits, and what its filters need; see draw.cpp for how they
// come together. Vectors find the few tokens that could win, those are then scored in fp64.
#pragma once

#include "simd.h"

namespace steer::cpu {
namespace {

using Wide = std::uint64_t __attribute__((vector_size(STEER_VECTOR)));
using Doubles = double __attribute__((vector_size(2 * STEER_VECTOR)));
template <typename T>
struct VectorOf;
template <>
struct VectorOf<float> {
  using type = Floats;
};
template <>
struct VectorOf<double> {
  using type = double __attribute__((vector_size(STEER_VECTOR)));
};
constexpr int kPairs = kLanes / 2;  // counters of Philox that are computed together

// Products of the low halves of 64-bit lanes.
inline Wide multiply_low(Wide a, Wide b) {
#if STEER_VECTOR == 64
  // Not _mm512_mul_epu32, of whose header GCC 12 warns.
  return (Wide)_mm512_maskz_mul_epu32((__mmask8)-1, (__m512i)a, (__m512i)b);
#elif STEER_VECTOR == 32
  return (Wide)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
  return (Wide)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
  return (a & 0xffffffffu) * (b & 0xffffffffu);
#endif
}

inline bool any(Ints mask) {
  const Wide words = reinterpret_cast<Wide>(mask);
  std::uint64_t all = 0;
  STEER_UNROLL
  for (int i = 0; i < kPairs; ++i) all |= words[i];
  return all != 0;
}

constexpr std::uint64_t kMultiplier0 = 0xD2511F53u, kMultiplier1 = 0xCD9E8D57u;
constexpr std::uint32_t kWeyl0 = 0x9E3779B9u, kWeyl1 = 0xBB67AE85u;

template <int... I>
inline void in_order(Wide low, Wide high, Words* out, Sequence<I...>) {
  out[0] =
      reinterpret_cast<Words>(__builtin_shufflevector(low, high, (I % 2 * kPairs + I / 2 * 2)...));
  out[1] = reinterpret_cast<Words>(
      __builtin_shufflevector(low, high, (I % 2 * kPairs + I / 2 * 2 + 1)...));
}

// Words of Philox 4x32-10 for the tokens from 4 * group on, 2 * kLanes of them, in order. A lane of
// 64 bits has one counter, of whose words only the low halves count. Lanes of 128 bits hold
// counters that lie kPairs / 2 apart, so that no word has to cross them at the end.
inline void philox(const RaceKey& race, std::uint32_t group, Words* out) {
  Wide c0 = Wide{} + race.counter[0], c1 = Wide{} + race.counter[1];
  Wide c2 = Wide{} + race.counter[2], c3;
  STEER_UNROLL
  for (int i = 0; i < kPairs; ++i)
    c3[i] = group + static_cast<std::uint32_t>(i % 2 * (kPairs / 2) + i / 2);
  std::uint32_t k0 = static_cast<std::uint32_t>(race.key);
  std::uint32_t k1 = static_cast<std::uint32_t>(race.key >> 32);
  STEER_UNROLL
  for (int round = 0; round < 10; ++round) {
    const Wide left = multiply_low(c0, Wide{} + kMultiplier0);
    const Wide right = multiply_low(c2, Wide{} + kMultiplier1);
    c0 = (right >> 32) ^ c1 ^ (Wide{} + k0);
    c1 = right;
    c2 = (left >> 32) ^ c3 ^ (Wide{} + k1);
    c3 = left;
    k0 += kWeyl0;
    k1 += kWeyl1;
  }
  const Wide first = (c0 & 0xffffffffu) | (c1 << 32), second = (c2 & 0xffffffffu) | (c3 << 32);
  in_order(first, second, out, typename Count<kPairs>::type{});
}

// Logits minus the row's greatest; -inf past the end.
inline Floats below_top(const float* z, float top) { return load<Floats>(z) - top; }
inline Floats below_top(const double* z, double top) {
  Doubles v;  // never returned: two registers are not everywhere how a vector is
  __builtin_memcpy(&v, z, sizeof v);
  return __builtin_convertvector(v - top, Floats);
}
template <typename T>
inline Floats below_top(const T* z, T top, Index rest) {
  if (rest >= kLanes) return below_top(z, top);
  Floats shifted = splat(-__builtin_inff());
  for (Index i = 0; i < rest; ++i) shifted[i] = static_cast<float>(z[i] - top);
  return shifted;
}

// The greatest logit and the first token that has it; false if the row has no distribution.
template <typename T>
bool find_top(const T* z, Index size, T& top, Index& first) {
  T best = z[0];
  bool nan = false;
  Index i = 0;
  using Vector = typename VectorOf<T>::type;
  constexpr Index kWidth = STEER_VECTOR / static_cast<Index>(sizeof(T));
  if (size >= kWidth) {
    Vector most = load<Vector>(z);
    auto odd = most != most;
    for (; i + kWidth <= size; i += kWidth) {
      const Vector v = load<Vector>(z + i);
      most = v > most ? v : most;
      odd |= v != v;
    }
    for (Index lane = 0; lane < kWidth; ++lane) {
      best = most[lane] > best ? most[lane] : best;
      nan |= odd[lane] != 0;
    }
  }
  for (; i < size; ++i) {
    best = z[i] > best ? z[i] : best;
    nan |= z[i] != z[i];
  }
  const T infinity = static_cast<T>(__builtin_inff());
  if (nan || !(best > -infinity && best < infinity)) return false;
  first = 0;
  while (z[first] != best) ++first;
  top = best;
  return true;
}

// The token's own word, as the reference computes it.
inline std::uint32_t word_of(const RaceKey& race, Index token) {
  std::uint32_t c[] = {race.counter[0], race.counter[1], race.counter[2],
                       static_cast<std::uint32_t>(token / 4)};
  std::uint32_t k0 = static_cast<std::uint32_t>(race.key);
  std::uint32_t k1 = static_cast<std::uint32_t>(race.key >> 32);
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t left = c[0] * kMultiplier0, right = c[2] * kMultiplier1;
    c[0] = static_cast<std::uint32_t>(right >> 32) ^ c[1] ^ k0;
    c[1] = static_cast<std::uint32_t>(right);
    c[2] = static_cast<std::uint32_t>(left >> 32) ^ c[3] ^ k1;
    c[3] = static_cast<std::uint32_t>(left);
    k0 += kWeyl0;
    k1 += kWeyl1;
  }
  return c[token % 4];
}

inline double score(double shifted, double temperature, std::uint32_t word) {
  const double time = -__builtin_log1p(-(word + 0.5) * 0x1p-32);
  return shifted / temperature - __builtin_log(time);
}

constexpr float kBest = 22.9f;   // -log E is at most that: 33 log 2
constexpr float kSlack = 1e-3f;  // far more than fp32 can be off where a token may win
constexpr float kLog2 = 0.69314718f;

// At least -log E of each word. E is at least v, and the bits of a float as a number are at most
// its logarithm. The lowest bit of a word is dropped: without it the word fits a signed conversion.
inline Floats least_delay(Words words) {
  const Floats v = __builtin_convertvector(reinterpret_cast<Ints>(words >> 1), Floats);
  const Floats bits = __builtin_convertvector(reinterpret_cast<Ints>(v), Floats);
  return bits * (-kLog2 * 0x1p-23f) + kLog2 * (127 + 31);
}

inline float inverse(double temperature) {
  const double ratio = 1 / temperature;
  return ratio < 1e38 ? static_cast<float>(ratio) : 1e38f;
}

// The winner among the tokens that `cut` keeps. top, first: of find_top.
template <typename T>
Index race(const T* z, Index size, T top, Index first, const RaceKey& key, const Cut& cut) {
  const double temperature = key.temperature;
  const float scale = inverse(temperature);
  Index best = first;
  double most = score(0, temperature, word_of(key, first));
  Floats bar = splat(static_cast<float>(most) - kSlack);
  const double least = cut.least - static_cast<double>(top);
  const double likely = temperature * __builtin_log(cut.min_p);
  const double low = least > likely ? least : likely;
  const Floats floor = splat(low > -1e38 ? static_cast<float>(low) * 1.000001f - 1e-30f : -1e38f);
  for (Index i = 0; i < size; i += 2 * kLanes) {
    Floats heat[2];
    Ints near[2];
    STEER_UNROLL
    for (int half = 0; half < 2; ++half) {
      const Floats shifted = below_top(z + i + half * kLanes, top, size - i - half * kLanes);
      heat[half] = shifted * scale;
      near[half] = (heat[half] + kBest >= bar) & (shifted >= floor);
    }
    if (!any(near[0] | near[1])) continue;
    Words words[2];
    philox(key, static_cast<std::uint32_t>(i / 4), words);
    STEER_UNROLL
    for (int half = 0; half < 2; ++half) near[half] &= heat[half] + least_delay(words[half]) >= bar;
    if (!any(near[0] | near[1])) continue;
    for (int lane = 0; lane < 2 * kLanes; ++lane) {
      const Index token = i + lane;
      if (!near[lane / kLanes][lane % kLanes] || !cut.keeps(z[token], token)) continue;
      const double shifted = static_cast<double>(z[token]) - top;
      if (__builtin_exp(shifted / temperature) < cut.min_p) continue;
      const double mine = score(shifted, temperature, words[lane / kLanes][lane % kLanes]);
      if (mine < most || (mine == most && token >= best)) continue;
      most = mine;
      best = token;
      bar = splat(static_cast<float>(most) - kSlack);
    }
  }
  return best;
}

// Tokens of at least top + floors[r], and their mass.
template <typename T>
void count_rungs(const T* z, Index size, T top, double temperature, const float* floors,
                 Rungs& out) {
  const float scale = inverse(temperature);
  out = {};
  constexpr Index kBlock = 64 * kLanes;  // a sum of blocks loses less than one long chain
  for (Index block = 0; block < size; block += kBlock) {
    const Index stop = block + kBlock < size ? block + kBlock : size;
    Ints counts[kRungs] = {};
    Floats masses[kRungs] = {}, total = {};
    for (Index i = block; i < stop; i += kLanes) {
      const Floats shifted = below_top(z + i, top, stop - i);
      const Floats mass = exponential(shifted * scale);
      total += mass;
      for (int r = 0; r < kRungs; ++r) {
        const Ints inside = shifted >= floors[r];
        counts[r] -= inside;
        masses[r] += choose(inside, mass, Floats{});
      }
    }
    for (int r = 0; r < kRungs; ++r) {
      for (int lane = 0; lane < kLanes; ++lane) out.tokens[r] += counts[r][lane];
      out.masses[r] += sum(masses[r]);
    }
    out.total += sum(total);
  }
}

// Writes the ids, in order, of tokens below top + ceiling and of at least top + floor; `ids` has
// room for all of the row.
template <typename T>
Index gather(const T* z, Index size, T top, float ceiling, float floor, std::int32_t* ids) {
  Index count = 0;
  for (Index i = 0; i < size; i += kLanes) {
    const Floats shifted = below_top(z + i, top, size - i);
    const Ints inside = (shifted >= floor) & (shifted < ceiling);
    if (!any(inside)) continue;
    std::int32_t hits[kLanes];
    __builtin_memcpy(hits, &inside, sizeof hits);
    const Index lanes = size - i < kLanes ? size - i : kLanes;
    for (Index lane = 0; lane < lanes; ++lane) {  // no branch: which ones hit cannot be predicted
      ids[count] = static_cast<std::int32_t>(i + lane);
      count -= hits[lane];
    }
  }
  return count;
}

}  // namespace
}  // namespace steer::cpu
