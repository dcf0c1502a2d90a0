// The interface of the CPU kernels: one table of functions per instruction set, chosen at run time.
//
// Activations that feed a product are of the weights' type, everything else is fp32. Sums run in
// fp32, each output's sum in an order that depends on its length alone: a row's result has the same
// bits whatever its neighbours are, and however the work is split.
#pragma once

#include <cstdint>

namespace steer::cpu {

struct Bf16 {
  std::uint16_t bits;
};

// Keys (or values) of one sequence, layer and KV head: pages of `page` rows in the arena.
struct Pages {
  const std::int32_t* table;  // [ceil(keys / page)] block ids
  std::int64_t slots;         // blocks of a slab
  std::int64_t slab;          // elements from slab to slab
  std::int64_t block;         // elements from block to block
  std::int64_t plane;         // elements from the block's start to the keys of this layer and head
  std::int64_t values;        // elements from a key to its value
  std::int64_t page;          // tokens of a block
};

// Consecutive query rows of one sequence, for one KV head.
struct Queries {
  std::int64_t rows;        // query rows
  std::int64_t group;       // query heads that share the KV head
  std::int64_t width;       // elements of a head
  std::int64_t out_stride;  // elements of the output from row to row
  std::int64_t keys;        // visible to the first row; each further row sees one more
  float scale;              // of the products of queries and keys
};

// Statistics of one row of logits; `valid` is false if it holds NaN, +inf or nothing but -inf.
struct Statistics {
  float entropy, max_prob, log_odds, margin, max_logit, logsumexp;
  std::int64_t argmax;
  bool valid;
};

// The names of the first ones, in order.
constexpr const char* kStatistics[] = {"entropy", "max_prob",  "log_odds",
                                       "margin",  "max_logit", "logsumexp"};
static_assert(sizeof kStatistics / sizeof *kStatistics ==
              __builtin_offsetof(Statistics, argmax) / sizeof(float));

// Elements of a head, at most.
constexpr std::int64_t kLongestHead = 512;

// Keys that are scored before their values are read: the scratch of `attend` grows with it.
constexpr std::int64_t kKeyChunk = 256;

template <typename T>
struct TypedKernels {
  // y[c * y_stride + r] = sum over k < size of w[r * size + k] * x[c * x_stride + k].
  void (*linear)(const T* w, std::int64_t rows, const T* x, std::int64_t x_stride,
                 std::int64_t columns, std::int64_t size, float* y, std::int64_t y_stride);
  // out = x / rms(x) * weight.
  void (*rms_norm)(const float* x, const T* weight, float eps, std::int64_t size, T* out);
  // out = silu(gate) * up.
  void (*silu_mul)(const float* gate, const float* up, std::int64_t size, T* out);
  // A head [2 * half]: adds `bias`, normalises with `norm` (either may be null), then rotates its
  // pairs (i, i + half) by the angles whose cosines [half] and sines [half] `turn` holds.
  void (*rope)(const float* x, const T* bias, const T* norm, float eps, const float* turn,
               std::int64_t half, T* out);
  // out = x + bias; `bias` may be null.
  void (*shift)(const float* x, const T* bias, std::int64_t size, T* out);
  void (*widen)(const T* x, std::int64_t size, float* out);
  // Causal attention. query: [rows, group, width]; out: `group` heads side by side in each row.
  void (*attend)(const Pages& pages, const Queries& queries, const T* arena, const T* query,
                 float* scratch, T* out);
};

// What the times of a row's tokens depend on; see kernels/reference/sampling.py.
struct RaceKey {
  std::uint64_t key;
  std::uint32_t counter[3];
  double temperature;  // above 0
};

// The tokens that filters keep: those above `least`, of its equals those up to the id `last`, and
// of these the ones at least `min_p` times as likely as the first.
struct Cut {
  double least = -__builtin_inf();
  std::int64_t last = INT64_MAX;
  double min_p = 0;

  bool keeps(double z, std::int64_t token) const {
    return z > least || (z == least && token <= last);
  }
};

// How much of a row lies within some distances of its greatest logit.
constexpr int kRungs = 8;
struct Rungs {
  std::int64_t tokens[kRungs];
  double masses[kRungs];  // relative to the first token's
  double total;           // mass of all
};

// On a row of logits of type T. What they do is said in race.h.
template <typename T>
struct RaceKernels {
  bool (*find_top)(const T* z, std::int64_t size, T& top, std::int64_t& first);
  std::int64_t (*race)(const T* z, std::int64_t size, T top, std::int64_t first, const RaceKey& key,
                       const Cut& cut);
  void (*count_rungs)(const T* z, std::int64_t size, T top, double temperature, const float* floors,
                      Rungs& out);
  std::int64_t (*gather)(const T* z, std::int64_t size, T top, float ceiling, float floor,
                         std::int32_t* ids);
};

struct Kernels {
  const char* name;
  TypedKernels<float> fp32;
  TypedKernels<Bf16> bf16;
  RaceKernels<float> draw32;
  RaceKernels<double> draw64;
  void (*confidence)(const float* logits, std::int64_t vocabulary, Statistics& out);
};

// Floats of scratch that `attend` needs for `queries` query heads (rows * group).
inline std::int64_t attend_scratch(std::int64_t queries, std::int64_t width) {
  constexpr std::int64_t padding = 32;  // a head is padded to whole vectors
  return queries * (kKeyChunk + width + padding + 2);
}

}  // namespace steer::cpu
