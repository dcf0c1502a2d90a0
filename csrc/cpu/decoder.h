// A whole forward pass over the paged arena. Owns no weights and no KV: addresses come from outside
// and must outlive the decoder.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "team.h"

namespace steer::cpu {

struct Shape {
  std::int64_t layers, hidden, heads, kv_heads, head_dim, intermediate, vocabulary;
  float eps;
};

// Addresses of one layer's weights, [out, in] each; null for weights that the family lacks.
struct Layer {
  const void *attention_norm, *qkv, *output, *mlp_norm, *gate_up, *down;
  const void *qkv_bias, *output_bias, *gate_up_bias, *down_bias, *query_norm, *key_norm;
};
inline constexpr std::array kLayerWeights{
    "attention_norm", "qkv",         "output",       "mlp_norm",  "gate_up",    "down",
    "qkv_bias",       "output_bias", "gate_up_bias", "down_bias", "query_norm", "key_norm"};
static_assert(sizeof(Layer) == kLayerWeights.size() * sizeof(const void*));

// Rows of one sequence that are attended together, sharing a pass over their keys, at most.
inline constexpr std::int64_t kQueryRows = 8;

struct Weights {
  const void *embedding, *norm, *head;
  const float* turns;  // [positions, cosine|sine, head_dim / 2]
  std::int64_t positions;
  std::vector<Layer> layers;
};

// Where keys and values lie in the arena; sizes in elements. See kernels/reference/attention.py.
struct Layout {
  std::int64_t block_tokens, slots, slab, arena;
};

// One tick; buffers as in csrc/schedule/plan.h. Rows from starts[sequences] on are padding, as are
// those with a slot below 0: their keys and values are not stored.
struct Batch {
  const std::int32_t *tokens, *positions, *slots;  // [rows]
  const std::int32_t *starts, *contexts, *table;   // [sequences + 1], [sequences], [.., width]
  const std::int32_t* sampled;                     // rows whose logits are wanted
  std::int64_t rows, sequences, width, sampled_rows;
  std::int64_t headless;  // of the sampled rows, how many of the last stop before the head
};

class Decoder {
 public:
  virtual ~Decoder() = default;
  // Writes the batch's keys and values into the arena, logits [sampled_rows - headless,
  // vocabulary], and the head's input of the other sampled rows, [headless, hidden] in the weights'
  // type. Throws std::invalid_argument, before anything is written, if an index of the batch is out
  // of range.
  virtual void forward(const Batch& batch, const Layout& layout, void* arena, float* logits,
                       void* hidden) = 0;
  // Logits, [rows, vocabulary], of what forward() wrote to `hidden` for them.
  virtual void head(const void* hidden, std::int64_t rows, float* logits) = 0;
};

// `half`: weights, arena and products in bf16, else in fp32.
std::unique_ptr<Decoder> make_decoder(bool half, const std::string& instruction_set, int threads,
                                      const Shape& shape, Weights weights);

}  // namespace steer::cpu
