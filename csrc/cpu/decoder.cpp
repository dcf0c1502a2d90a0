#include "decoder.h"

#include <algorithm>
#include <mutex>
#include <stdexcept>
#include <type_traits>
#include <utility>

#include "instruction_sets.h"

namespace steer::cpu {

namespace {

constexpr std::int64_t kTaskBytes = 64 * 1024;  // weights that a thread takes at a time
constexpr std::int64_t kRowTile = 16;           // a multiple of every kernel's tile
constexpr std::int64_t kColumns = 64;           // rows of a batch whose gates are kept at a time

std::int64_t pieces(std::int64_t total, std::int64_t size) { return (total + size - 1) / size; }

// Grows, never shrinks.
template <typename T>
T* room(std::vector<T>& buffer, std::int64_t size) {
  if (static_cast<std::int64_t>(buffer.size()) < size) buffer.resize(size);
  return buffer.data();
}

// Query rows of one sequence that are attended together.
struct Stretch {
  std::int64_t sequence, first, rows, keys;
};

// Elements of a block: [layer, key|value, kv_head, token, head_dim].
std::int64_t block_size(const Shape& s, const Layout& l) {
  return s.layers * 2 * s.kv_heads * l.block_tokens * s.head_dim;
}

void check(const char* name, std::int64_t value, std::int64_t low, std::int64_t high) {
  if (value < low || value >= high)
    throw std::invalid_argument(std::string(name) + " must be in " + std::to_string(low) + ".." +
                                std::to_string(high - 1) + ", got " + std::to_string(value));
}

void check_batch(const Batch& b, const Layout& l, const Shape& s, std::int64_t positions) {
  const std::int64_t block = block_size(s, l);
  if (l.block_tokens < 1 || l.slots < 1 || l.slots * block > l.slab)
    throw std::invalid_argument("blocks do not fit their slab");
  const std::int64_t blocks = l.arena / l.slab * l.slots;
  for (std::int64_t row = 0; row < b.rows; ++row) {
    check("tokens", b.tokens[row], 0, s.vocabulary);
    check("positions", b.positions[row], 0, positions);
    check("slots", b.slots[row], -1, blocks * l.block_tokens);
  }
  check("starts", b.starts[0], 0, 1);
  for (std::int64_t i = 0; i < b.sequences; ++i) {
    check("starts", b.starts[i + 1], b.starts[i], b.rows + 1);
    const std::int64_t span = b.starts[i + 1] - b.starts[i];
    if (!span) continue;  // padding
    check("contexts", b.contexts[i], span, b.width * l.block_tokens + 1);
    for (std::int64_t j = 0; j < pieces(b.contexts[i], l.block_tokens); ++j)
      check("table", b.table[i * b.width + j], 0, blocks);
  }
  for (std::int64_t i = 0; i < b.sampled_rows; ++i) check("sampled", b.sampled[i], 0, b.rows);
  check("headless", b.headless, 0, b.sampled_rows + 1);
}

template <typename T>
class TypedDecoder final : public Decoder {
 public:
  TypedDecoder(const TypedKernels<T>& kernels, int threads, const Shape& shape, Weights weights)
      : k_(kernels), s_(shape), w_(std::move(weights)), team_(threads) {
    scratch_.resize(team_.size());
  }

  void forward(const Batch& batch, const Layout& layout, void* arena, float* logits,
               void* hidden) override {
    check_batch(batch, layout, s_, w_.positions);
    std::lock_guard turn(turn_);
    b_ = batch;
    l_ = layout;
    arena_ = static_cast<T*>(arena);
    logits_ = logits;
    hidden_ = static_cast<T*>(hidden);
    allocate();
    plan_attention();
    team_.run([this](Team::Member& member) { pass(member); });
  }

  void head(const void* hidden, std::int64_t rows, float* logits) override {
    std::lock_guard turn(turn_);
    const auto* input = static_cast<const T*>(hidden);
    team_.run([&](Team::Member& member) { multiply_head(member, input, rows, logits); });
  }

 private:
  std::int64_t query_width() const { return s_.heads * s_.head_dim; }
  std::int64_t qkv_width() const { return query_width() + 2 * s_.kv_heads * s_.head_dim; }
  std::int64_t group() const { return s_.heads / s_.kv_heads; }
  static const T* weight(const void* at) { return static_cast<const T*>(at); }

  void allocate() {
    const std::int64_t rows = std::max(b_.rows, b_.sampled_rows);
    x_ = room(x_buffer_, rows * s_.hidden);
    qkv_ = room(qkv_buffer_, rows * qkv_width());
    query_ = room(query_buffer_, rows * query_width());
    const std::int64_t widest = std::max({s_.hidden, query_width(), s_.intermediate});
    input_ = room(input_buffer_, rows * widest);
    gated_ = room(gated_buffer_, rows * s_.intermediate);
    const std::int64_t gates = 2 * kColumns * task_rows(s_.hidden);
    const std::int64_t sums = rows * std::max(task_rows(query_width()), task_rows(s_.intermediate));
    const std::int64_t scores = attend_scratch(kQueryRows * group(), s_.head_dim);
    for (auto& scratch : scratch_) room(scratch, std::max({gates, sums, scores}));
  }

  void plan_attention() {
    stretches_.clear();
    for (std::int64_t i = 0; i < b_.sequences; ++i) {
      const std::int64_t begin = b_.starts[i], end = b_.starts[i + 1];
      for (std::int64_t row = begin; row < end; row += kQueryRows)
        stretches_.push_back(
            {i, row, std::min(kQueryRows, end - row), b_.contexts[i] - (end - row) + 1});
    }
    // The longest first, so that no thread starts a long one at the end.
    std::stable_sort(stretches_.begin(), stretches_.end(), [](const Stretch& a, const Stretch& b) {
      return a.rows * a.keys > b.rows * b.keys;
    });
  }

  // Rows per task of a matrix with `columns` columns.
  static std::int64_t task_rows(std::int64_t columns) {
    const std::int64_t bytes = columns * static_cast<std::int64_t>(sizeof(T));
    return std::max<std::int64_t>(1, kTaskBytes / bytes / kRowTile) * kRowTile;
  }

  // Calls use(first, rows, thread) for stretches of a matrix's rows.
  template <typename Use>
  void each_rows(Team::Member& m, std::int64_t rows, std::int64_t columns, Use use) {
    const std::int64_t step = task_rows(columns);
    m.phase(pieces(rows, step), [&](std::int64_t task) {
      use(task * step, std::min(step, rows - task * step), m.index);
    });
  }

  void pass(Team::Member& m) {
    m.phase(b_.rows, [&](std::int64_t row) {
      k_.widen(weight(w_.embedding) + b_.tokens[row] * s_.hidden, s_.hidden, x_ + row * s_.hidden);
    });
    for (std::int64_t i = 0; i < s_.layers; ++i) layer(m, i, w_.layers[i]);
    const std::int64_t headed = b_.sampled_rows - b_.headless;
    m.phase(b_.sampled_rows, [&](std::int64_t i) {
      k_.rms_norm(x_ + b_.sampled[i] * s_.hidden, weight(w_.norm), s_.eps, s_.hidden,
                  i < headed ? input_ + i * s_.hidden : hidden_ + (i - headed) * s_.hidden);
    });
    if (headed) multiply_head(m, input_, headed, logits_);
  }

  void multiply_head(Team::Member& m, const T* input, std::int64_t count, float* logits) {
    each_rows(m, s_.vocabulary, s_.hidden, [&](std::int64_t first, std::int64_t rows, int) {
      k_.linear(weight(w_.head) + first * s_.hidden, rows, input, s_.hidden, count, s_.hidden,
                logits + first, s_.vocabulary);
    });
  }

  void layer(Team::Member& m, std::int64_t index, const Layer& w) {
    norm(m, w.attention_norm);
    each_rows(m, qkv_width(), s_.hidden, [&](std::int64_t first, std::int64_t rows, int) {
      k_.linear(weight(w.qkv) + first * s_.hidden, rows, input_, s_.hidden, b_.rows, s_.hidden,
                qkv_ + first, qkv_width());
    });
    m.phase(b_.rows, [&](std::int64_t row) { rope(index, w, row); });
    m.phase(static_cast<std::int64_t>(stretches_.size()) * s_.kv_heads, [&](std::int64_t task) {
      attend(index, stretches_[task / s_.kv_heads], task % s_.kv_heads, m.index);
    });
    add_product(m, w.output, w.output_bias, input_, query_width());
    norm(m, w.mlp_norm);
    each_rows(m, s_.intermediate, s_.hidden,
              [&](std::int64_t first, std::int64_t rows, int thread) {
                gate(w, first, rows, scratch_[thread].data());
              });
    add_product(m, w.down, w.down_bias, gated_, s_.intermediate);
  }

  void norm(Team::Member& m, const void* w) {
    m.phase(b_.rows, [&](std::int64_t row) {
      k_.rms_norm(x_ + row * s_.hidden, weight(w), s_.eps, s_.hidden, input_ + row * s_.hidden);
    });
  }

  // x += matrix * input + bias.
  void add_product(Team::Member& m, const void* matrix, const void* bias, const T* input,
                   std::int64_t columns) {
    each_rows(m, s_.hidden, columns, [&](std::int64_t first, std::int64_t rows, int thread) {
      float* sums = scratch_[thread].data();
      k_.linear(weight(matrix) + first * columns, rows, input, columns, b_.rows, columns, sums,
                rows);
      add_bias(bias, first, rows, b_.rows, sums);
      for (std::int64_t row = 0; row < b_.rows; ++row)
        for (std::int64_t i = 0; i < rows; ++i)
          x_[row * s_.hidden + first + i] += sums[row * rows + i];
    });
  }

  // Adds the bias of some outputs, which may be null, to their sums in each column.
  void add_bias(const void* bias, std::int64_t first, std::int64_t rows, std::int64_t columns,
                float* sums) const {
    if (!bias) return;
    std::vector<float> wide(rows);
    k_.widen(weight(bias) + first, rows, wide.data());
    for (std::int64_t c = 0; c < columns; ++c)
      for (std::int64_t i = 0; i < rows; ++i) sums[c * rows + i] += wide[i];
  }

  void gate(const Layer& w, std::int64_t first, std::int64_t rows, float* scratch) {
    const T* gates = weight(w.gate_up) + first * s_.hidden;
    const T* ups = gates + s_.intermediate * s_.hidden;
    float* second = scratch + kColumns * rows;
    for (std::int64_t row = 0; row < b_.rows; row += kColumns) {
      const std::int64_t columns = std::min(kColumns, b_.rows - row);
      const T* input = input_ + row * s_.hidden;
      k_.linear(gates, rows, input, s_.hidden, columns, s_.hidden, scratch, rows);
      k_.linear(ups, rows, input, s_.hidden, columns, s_.hidden, second, rows);
      add_bias(w.gate_up_bias, first, rows, columns, scratch);
      add_bias(w.gate_up_bias, s_.intermediate + first, rows, columns, second);
      for (std::int64_t c = 0; c < columns; ++c)
        k_.silu_mul(scratch + c * rows, second + c * rows, rows,
                    gated_ + (row + c) * s_.intermediate + first);
    }
  }

  // First element of a head's keys in a block: [layer, key|value, kv_head, token, head_dim].
  std::int64_t plane(std::int64_t layer, std::int64_t head) const {
    return (2 * layer * s_.kv_heads + head) * l_.block_tokens * s_.head_dim;
  }
  std::int64_t values() const { return s_.kv_heads * l_.block_tokens * s_.head_dim; }

  // Queries of a KV head lie side by side, row by row: [kv_heads, rows, group, head_dim].
  T* queries(std::int64_t head, std::int64_t row) const {
    return query_ + (head * b_.rows + row) * group() * s_.head_dim;
  }

  void rope(std::int64_t layer, const Layer& w, std::int64_t row) {
    const std::int64_t width = s_.head_dim, half = width / 2;
    const float* turn = w_.turns + b_.positions[row] * width;
    const float* heads = qkv_ + row * qkv_width();
    const auto bias = [&](std::int64_t head) {
      return w.qkv_bias ? weight(w.qkv_bias) + head * width : nullptr;
    };
    for (std::int64_t h = 0; h < s_.heads; ++h)
      k_.rope(heads + h * width, bias(h), weight(w.query_norm), s_.eps, turn, half,
              queries(h / group(), row) + h % group() * width);
    if (row >= b_.starts[b_.sequences])  // padding attends to nothing
      std::fill_n(input_ + row * query_width(), query_width(), T{});
    if (b_.slots[row] < 0) return;
    const std::int64_t block = b_.slots[row] / l_.block_tokens;
    const std::int64_t offset = b_.slots[row] % l_.block_tokens * width;
    T* first = arena_ + block / l_.slots * l_.slab + block % l_.slots * block_size(s_, l_) + offset;
    for (std::int64_t h = 0; h < s_.kv_heads; ++h) {
      T* key = first + plane(layer, h);
      const std::int64_t k = s_.heads + h, v = k + s_.kv_heads;
      k_.rope(heads + k * width, bias(k), weight(w.key_norm), s_.eps, turn, half, key);
      k_.shift(heads + v * width, bias(v), width, key + values());
    }
  }

  void attend(std::int64_t layer, const Stretch& part, std::int64_t head, int thread) {
    const Pages pages{b_.table + part.sequence * b_.width,
                      l_.slots,
                      l_.slab,
                      block_size(s_, l_),
                      plane(layer, head),
                      values(),
                      l_.block_tokens};
    const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(s_.head_dim));
    const Queries asked{part.rows, group(), s_.head_dim, query_width(), part.keys, scale};
    k_.attend(pages, asked, arena_, queries(head, part.first), scratch_[thread].data(),
              input_ + part.first * query_width() + head * group() * s_.head_dim);
  }

  const TypedKernels<T>& k_;
  const Shape s_;
  const Weights w_;
  Team team_;
  std::mutex turn_;  // guards the members below, which belong to the current pass
  Batch b_{};
  Layout l_{};
  T* arena_ = nullptr;
  float* logits_ = nullptr;
  T* hidden_ = nullptr;
  std::vector<Stretch> stretches_;
  float *x_ = nullptr, *qkv_ = nullptr;                       // [rows, hidden], [rows, qkv_width]
  T *query_ = nullptr, *input_ = nullptr, *gated_ = nullptr;  // input: of the next product
  std::vector<float> x_buffer_, qkv_buffer_;
  std::vector<T> query_buffer_, input_buffer_, gated_buffer_;
  std::vector<std::vector<float>> scratch_;  // of each thread
};

}  // namespace

std::unique_ptr<Decoder> make_decoder(bool half, const std::string& instruction_set, int threads,
                                      const Shape& shape, Weights weights) {
  const Kernels& found = kernels(instruction_set);
  if (half)
    return std::make_unique<TypedDecoder<Bf16>>(found.bf16, threads, shape, std::move(weights));
  return std::make_unique<TypedDecoder<float>>(found.fp32, threads, shape, std::move(weights));
}

}  // namespace steer::cpu
