// Paged grouped-query attention of a few rows of one sequence, for one KV head.
//
// Keys are taken in chunks of kKeyChunk, counted from the sequence's start: scores, a running
// softmax, then the values. What a row sees, and in which order, depends on its position alone.
#pragma once

#include "linear.h"

namespace steer::cpu {
namespace {

// Width of a head in fp32, in the order in which values are loaded: bf16 in low and high halves.
template <typename T>
inline Index padded(Index width) {
  return (width + kStep<T> - 1) / kStep<T> * kStep<T>;
}

template <typename T>
struct State {
  const Pages& pages;
  const Queries& queries;
  const T* arena;
  Index count;    // query heads
  float* scores;  // [count, kKeyChunk]
  float* mixed;   // [count, padded(width)]
  float* top;     // [count] largest score so far
  float* total;   // [count] sum of weights so far
};

template <typename T>
inline const T* keys_at(const State<T>& s, Index position) {
  const Pages& p = s.pages;
  const Index block = p.table[position / p.page], offset = position % p.page;
  return s.arena + block / p.slots * p.slab + block % p.slots * p.block + p.plane +
         offset * s.queries.width;
}

// Calls run(keys, from, size) for each stretch of keys [begin, end) that lies within one page.
template <typename T, typename Run>
inline void each_page(const State<T>& s, Index begin, Index end, Run run) {
  for (Index at = begin; at < end;) {
    const Index left = s.pages.page - at % s.pages.page, size = left < end - at ? left : end - at;
    run(keys_at(s, at), at - begin, size);
    at += size;
  }
}

template <typename T>
inline void fetch(const T* from, Index count) {
  for (Index i = 0; i < count; i += 64 / sizeof(T)) __builtin_prefetch(from + i, 0, 2);
}

// Pages lie far apart, so hardware prefetching ends with each page: keys are prefetched two pages
// before they are scored, values while their keys are scored.
template <typename T>
inline void score(State<T>& s, const T* query, Index begin, Index end, Index keys) {
  const Index width = s.queries.width, ahead = 2 * s.pages.page;
  each_page(s, begin, end, [&](const T* from, Index at, Index size) {
    if (begin + at + ahead < keys) fetch(keys_at(s, begin + at + ahead), size * width);
    fetch(from + s.pages.values, size * width);
    products(from, width, size, query, width, s.count, width, s.scores + at, kKeyChunk, false);
  });
}

// Scores to weights; `visible` of the chunk's `size` keys count.
template <typename T>
inline void soften(State<T>& s, Index query, Index visible, Index size) {
  float* score = s.scores + query * kKeyChunk;
  for (Index k = visible < 0 ? 0 : visible; k < size; ++k) score[k] = -__builtin_inff();
  const Index whole = (size + kLanes - 1) / kLanes * kLanes;
  for (Index k = size; k < whole; ++k) score[k] = -__builtin_inff();
  Floats best = splat(-__builtin_inff());
  for (Index k = 0; k < whole; k += kLanes) best = maximum(load<Floats>(score + k), best);
  const float before = s.top[query], now = largest(best) * s.queries.scale;
  const float top = now > before ? now : before;
  Floats sums = {};
  for (Index k = 0; k < whole; k += kLanes) {
    const Floats weight = exponential(load<Floats>(score + k) * s.queries.scale - top);
    store(score + k, weight);
    sums += weight;
  }
  const float keep = exponential(splat(before - top))[0];
  s.total[query] = s.total[query] * keep + sum(sums);
  s.top[query] = top;
  float* mixed = s.mixed + query * padded<T>(s.queries.width);
  if (keep != 1.0f)
    for (Index i = 0; i < padded<T>(s.queries.width); ++i) mixed[i] *= keep;
}

template <typename T>
constexpr int kHalves = static_cast<int>(4 / sizeof(T));

// Adds weighted values to COUNT heads, STEPS steps of their width; the last one may be cut short.
template <typename T, int COUNT, int STEPS>
inline void mix(State<T>& s, Index query, Index begin, Index end, Index column) {
  constexpr int kSums = STEPS * kHalves<T>;
  const Index width = s.queries.width, room = padded<T>(width),
              last = column + (STEPS - 1) * kStep<T>;
  const bool whole = width - last >= kStep<T>;
  float* mixed = s.mixed + query * room + column;
  Floats sums[COUNT][kSums];
  for (int q = 0; q < COUNT; ++q)
    for (int h = 0; h < kSums; ++h) sums[q][h] = load<Floats>(mixed + q * room + h * kLanes);
  each_page(s, begin, end, [&](const T* keys, Index from, Index size) {
    const T* values = keys + s.pages.values + column;
    const float* weights = s.scores + query * kKeyChunk + from;
    for (Index k = 0; k < size; ++k, values += width) {
      STEER_UNROLL
      for (int c = 0; c < STEPS; ++c) {
        const T* at = values + c * kStep<T>;
        const Words words = c + 1 < STEPS || whole
                                ? load<Words>(at)
                                : load_part<Words>(at, (width - last) * Index(sizeof(T)));
        STEER_UNROLL
        for (int q = 0; q < COUNT; ++q) {
          const float weight = weights[q * kKeyChunk + k];
          if constexpr (sizeof(T) == 4) {
            sums[q][c] += weight * as_floats(words);
          } else {
            sums[q][2 * c] += weight * low_half(words);
            sums[q][2 * c + 1] += weight * high_half(words);
          }
        }
      }
    }
  });
  for (int q = 0; q < COUNT; ++q)
    for (int h = 0; h < kSums; ++h) store(mixed + q * room + h * kLanes, sums[q][h]);
}

// The rest of the width, as many steps at a time as there are independent sums.
template <typename T, int COUNT, int STEPS>
inline void mix_from(State<T>& s, Index query, Index begin, Index end, Index column) {
  const Index width = s.queries.width;
  for (; column + STEPS * kStep<T> <= width; column += STEPS * kStep<T>)
    mix<T, COUNT, STEPS>(s, query, begin, end, column);
  if constexpr (STEPS > 1) {
    mix_from<T, COUNT, STEPS / 2>(s, query, begin, end, column);
  } else if (column < width) {
    mix<T, COUNT, 1>(s, query, begin, end, column);
  }
}

template <typename T, int COUNT>
inline void mix_wide(State<T>& s, Index query, Index begin, Index end) {
  constexpr int kSums = 8 / COUNT / kHalves<T>;
  mix_from<T, COUNT, kSums >= 4 ? 4 : kSums >= 2 ? 2 : 1>(s, query, begin, end, 0);
}

template <typename T>
inline void mix_all(State<T>& s, Index begin, Index end) {
  Index q = 0;
  for (; q + 4 <= s.count; q += 4) mix_wide<T, 4>(s, q, begin, end);
  if (s.count - q == 3) mix_wide<T, 3>(s, q, begin, end);
  if (s.count - q == 2) mix_wide<T, 2>(s, q, begin, end);
  if (s.count - q == 1) mix_wide<T, 1>(s, q, begin, end);
}

template <typename T>
inline void write_out(const State<T>& s, T* out) {
  const Index width = s.queries.width, group = s.queries.group;
  for (Index q = 0; q < s.count; ++q) {
    const float* mixed = s.mixed + q * padded<T>(width);
    const float scale = 1.0f / s.total[q];
    T* to = out + q / group * s.queries.out_stride + q % group * width;
    for (Index i = 0; i < width; ++i) {
      const Index lane = i % kStep<T>, start = i - lane;
      constexpr Index halves = kHalves<T>;
      put(to + i, mixed[start + lane % halves * kLanes + lane / halves] * scale);
    }
  }
}

template <typename T>
void attend(const Pages& pages, const Queries& queries, const T* arena, const T* query,
            float* scratch, T* out) {
  const Index count = queries.rows * queries.group, width = queries.width;
  float* mixed = scratch + count * kKeyChunk;
  float* top = mixed + count * padded<T>(width);
  State<T> s{pages, queries, arena, count, scratch, mixed, top, top + count};
  for (Index i = 0; i < count * padded<T>(width); ++i) mixed[i] = 0;
  for (Index q = 0; q < count; ++q) {
    s.top[q] = -3.4e38f;  // finite: the difference of two infinities is NaN
    s.total[q] = 0;
  }
  const Index keys = queries.keys + queries.rows - 1;
  for (Index begin = 0; begin < keys; begin += kKeyChunk) {
    const Index end = begin + kKeyChunk < keys ? begin + kKeyChunk : keys;
    score(s, query, begin, end, keys);
    for (Index q = 0; q < count; ++q)
      soften(s, q, queries.keys + q / queries.group - begin, end - begin);
    mix_all(s, begin, end);
  }
  write_out(s, out);
}

}  // namespace
}  // namespace steer::cpu
