// The CPU kernels without Python, for the sanitizers: `cpu_kernels ROUNDS`.
// Random shapes in buffers without a byte to spare, on every instruction set of this machine,
// against sums in double; then passes of a small decoder, which must say the same with one thread
// and four.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "decoder.h"
#include "draw.h"
#include "instruction_sets.h"

using namespace steer::cpu;

namespace {

std::mt19937 generator(1);

std::int64_t below(std::int64_t limit) { return static_cast<std::int64_t>(generator() % limit); }
std::int64_t size_up_to(std::int64_t limit) { return 1 + below(limit); }

double value(float x) { return x; }
double value(Bf16 x) {
  const std::uint32_t word = static_cast<std::uint32_t>(x.bits) << 16;
  float y;
  std::memcpy(&y, &word, sizeof y);
  return y;
}

void set(float& to, float x) { to = x; }
void set(Bf16& to, float x) {
  std::uint32_t word;
  std::memcpy(&word, &x, sizeof word);
  to.bits = static_cast<std::uint16_t>(word >> 16);
}

void set(double& to, float x) { to = x; }

template <typename T>
std::vector<T> numbers(std::int64_t count, float scale = 1) {
  std::normal_distribution<float> normal(0, scale);
  std::vector<T> found(count);
  for (T& x : found) set(x, normal(generator));
  return found;
}

void expect(bool holds, const std::string& what) {
  if (!holds) throw std::runtime_error(what);
}

template <typename T>
constexpr double kRounding = std::is_same_v<T, float> ? 1e-5 : 0.01;

void close(double found, double expected, double scale, double tolerance, const char* what) {
  expect(std::abs(found - expected) <= tolerance * scale + 1e-6,
         std::string(what) + ": " + std::to_string(found) + " is not " + std::to_string(expected));
}

template <typename T>
void check_linear(const TypedKernels<T>& k) {
  const std::int64_t rows = size_up_to(40), columns = size_up_to(19), size = size_up_to(150);
  const auto w = numbers<T>(rows * size), x = numbers<T>(columns * size);
  std::vector<float> y(rows * columns);
  k.linear(w.data(), rows, x.data(), size, columns, size, y.data(), rows);
  for (std::int64_t c = 0; c < columns; ++c)
    for (std::int64_t r = 0; r < rows; ++r) {
      double sum = 0;
      for (std::int64_t i = 0; i < size; ++i)
        sum += value(w[r * size + i]) * value(x[c * size + i]);
      close(y[c * rows + r], sum, std::sqrt(size), 1e-5, "linear");
    }
}

template <typename T>
void check_layers(const TypedKernels<T>& k) {
  const std::int64_t size = 2 * size_up_to(60), half = size / 2;
  const auto x = numbers<float>(size), up = numbers<float>(size), turn = numbers<float>(size);
  const auto weight = numbers<T>(size);
  std::vector<T> out(size);
  double squares = 0;
  for (float v : x) squares += double(v) * v;
  const double scale = 1 / std::sqrt(squares / size + 1e-5);
  k.rms_norm(x.data(), weight.data(), 1e-5f, size, out.data());
  for (std::int64_t i = 0; i < size; ++i)
    close(value(out[i]), x[i] * scale * value(weight[i]), 10, kRounding<T>, "rms_norm");
  k.silu_mul(x.data(), up.data(), size, out.data());
  for (std::int64_t i = 0; i < size; ++i)
    close(value(out[i]), x[i] / (1 + std::exp(-double(x[i]))) * up[i], 5, kRounding<T>, "silu");
  k.rope(x.data(), nullptr, weight.data(), 1e-5f, turn.data(), half, out.data());
  for (std::int64_t i = 0; i < size; ++i) {
    const std::int64_t pair = i < half ? i + half : i - half;
    const double own = x[i] * scale * value(weight[i]);
    const double other = x[pair] * scale * value(weight[pair]) * (i < half ? -1 : 1);
    close(value(out[i]), own * turn[i % half] + other * turn[half + i % half], 10, kRounding<T>,
          "rope");
  }
}

void check_confidence(const Kernels& k) {
  const auto z = numbers<float>(size_up_to(3000), 4);
  Statistics found;
  k.confidence(z.data(), static_cast<std::int64_t>(z.size()), found);
  double top = z[0], total = 0;
  for (float v : z) top = std::max(top, double(v));
  for (float v : z) total += std::exp(v - top);
  expect(found.valid && z[found.argmax] == top, "argmax");
  close(found.logsumexp, top + std::log(total), 10, 1e-5, "logsumexp");
  close(found.max_prob, 1 / total, 1, 1e-5, "max_prob");
}

// E of a token, by Philox 4x32-10 as the paper writes it.
double race_time(const RaceKey& key, std::int64_t token) {
  std::uint32_t c[] = {key.counter[0], key.counter[1], key.counter[2],
                       static_cast<std::uint32_t>(token / 4)};
  std::uint32_t k[] = {static_cast<std::uint32_t>(key.key),
                       static_cast<std::uint32_t>(key.key >> 32)};
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t left = std::uint64_t{0xD2511F53} * c[0];
    const std::uint64_t right = std::uint64_t{0xCD9E8D57} * c[2];
    const std::uint32_t next[] = {
        static_cast<std::uint32_t>(right >> 32) ^ c[1] ^ k[0], static_cast<std::uint32_t>(right),
        static_cast<std::uint32_t>(left >> 32) ^ c[3] ^ k[1], static_cast<std::uint32_t>(left)};
    std::copy(next, next + 4, c);
    k[0] += 0x9E3779B9;
    k[1] += 0xBB67AE85;
  }
  return -std::log1p(-(c[token % 4] + 0.5) / 4294967296.0);
}

// The draw of a row, straight from what it means: sort, filter, race in double.
template <typename T>
std::int64_t slow_draw(const std::vector<T>& z, const RaceKey& key, const Filters& filters) {
  const auto size = static_cast<std::int64_t>(z.size());
  std::vector<std::int64_t> order(size);
  for (std::int64_t i = 0; i < size; ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return z[a] > z[b]; });
  const std::int64_t count = filters.top_k ? std::min(filters.top_k, size) : size;
  const auto mass = [&](std::int64_t i) {
    return std::exp((double(z[order[i]]) - z[order[0]]) / key.temperature);
  };
  double total = 0, before = 0, best = -INFINITY;
  for (std::int64_t i = 0; i < count; ++i) total += mass(i);
  std::int64_t winner = size;
  for (std::int64_t i = 0; i < count; before += mass(i++)) {
    if (i && filters.top_p < 1 && before >= filters.top_p * total) break;
    if (mass(i) < filters.min_p) break;
    const double mine = std::log(mass(i)) - std::log(race_time(key, order[i]));
    if (mine > best) winner = order[i];
    best = std::max(mine, best);
  }
  return winner;
}

template <typename T>
void check_draw(const Kernels& k) {
  const auto z = numbers<T>(size_up_to(3000), 1 + below(4));
  const auto size = static_cast<std::int64_t>(z.size());
  const double heats[] = {0.3, 1.0, 2.0}, shares[] = {1.0, 0.9, 0.3}, least[] = {0.0, 0.05};
  const auto word = [] { return static_cast<std::uint32_t>(generator()); };
  const RaceKey key{generator() * 0x9E3779B97F4A7C15u, {word(), word(), word()}, heats[below(3)]};
  const Filters filters{below(3) ? 0 : size_up_to(40), shares[below(3)], least[below(2)]};
  const std::int64_t found = draw(k, z.data(), size, key, filters);
  expect(found == slow_draw(z, key, filters), "draw: " + std::to_string(found));
}

// A decoder with random weights, and a batch of spans over an arena that has not a row to spare.
template <typename T>
class Model {
 public:
  Model() {
    shape_ = {2, 24, 6, 2, 2 * size_up_to(20), size_up_to(70), 50, 1e-5f};
    queries_ = shape_.heads * shape_.head_dim;
    const std::int64_t fused = queries_ + 2 * shape_.kv_heads * shape_.head_dim;
    embedding_ = numbers<T>(shape_.vocabulary * shape_.hidden);
    norm_ = numbers<T>(shape_.hidden);
    turns_ = numbers<float>(kPositions * shape_.head_dim);
    for (std::int64_t i = 0; i < shape_.layers; ++i) {
      const auto kept = [&](std::int64_t count) {
        weights_.push_back(numbers<T>(count, 0.2f));
        return static_cast<const void*>(weights_.back().data());
      };
      Layer layer{};
      layer.attention_norm = kept(shape_.hidden);
      layer.qkv = kept(fused * shape_.hidden);
      layer.output = kept(shape_.hidden * queries_);
      layer.mlp_norm = kept(shape_.hidden);
      layer.gate_up = kept(2 * shape_.intermediate * shape_.hidden);
      layer.down = kept(shape_.hidden * shape_.intermediate);
      layer.qkv_bias = kept(fused);
      layers_.push_back(layer);
    }
  }

  // Logits of all rows of two prefills, the second behind KV that an earlier pass has written.
  std::vector<float> run(const std::string& instruction_set, int threads) {
    auto decoder = make_decoder(
        std::is_same_v<T, Bf16>, instruction_set, threads, shape_,
        {embedding_.data(), norm_.data(), embedding_.data(), turns_.data(), kPositions, layers_});
    const std::int64_t block = shape_.layers * 2 * shape_.kv_heads * kPage * shape_.head_dim;
    std::vector<T> arena(kBlocks * block);
    const Layout layout{kPage, 1, block, static_cast<std::int64_t>(arena.size())};
    pass(*decoder, layout, arena, 0, 11, 0, 3);
    return pass(*decoder, layout, arena, 11, 30, 3, 4);
  }

 private:
  static constexpr std::int64_t kPositions = 40, kPage = 4, kWidth = 8, kBlocks = 2 * kWidth;

  // Rows [a, b) of one text and [c, d) of another.
  std::vector<float> pass(Decoder& decoder, const Layout& layout, std::vector<T>& arena, int a,
                          int b, int c, int d) {
    std::vector<std::int32_t> tokens, positions, slots, sampled, table(kBlocks);
    for (int i = 0; i < kBlocks; ++i) table[i] = (i * 5 + 3) % kBlocks;
    const int first[] = {a, c}, last[] = {b, d};
    for (int text = 0; text < 2; ++text)
      for (int at = first[text]; at < last[text]; ++at) {
        sampled.push_back(static_cast<std::int32_t>(tokens.size()));
        tokens.push_back((7 * at + text) % 50);
        positions.push_back(at);
        slots.push_back(table[text * kWidth + at / kPage] * kPage + at % kPage);
      }
    const std::vector<std::int32_t> starts{0, b - a, b - a + d - c}, contexts{b, d};
    const auto rows = static_cast<std::int64_t>(tokens.size());
    const std::int64_t headless = rows / 3;  // the logits of these stay 0
    std::vector<float> logits(rows * shape_.vocabulary);
    std::vector<T> hidden(headless * shape_.hidden);
    decoder.forward({tokens.data(), positions.data(), slots.data(), starts.data(), contexts.data(),
                     table.data(), sampled.data(), rows, 2, kWidth, rows, headless},
                    layout, arena.data(), logits.data(), hidden.data());
    return logits;
  }

  Shape shape_;
  std::int64_t queries_;
  std::vector<T> embedding_, norm_;
  std::vector<float> turns_;
  std::vector<std::vector<T>> weights_;
  std::vector<Layer> layers_;
};

template <typename T>
void check_decoder() {
  Model<T> model;
  for (const std::string& name : instruction_sets()) {
    const auto alone = model.run(name, 1), together = model.run(name, 4);
    for (float v : alone) expect(std::isfinite(v), "logits");
    expect(!std::memcmp(alone.data(), together.data(), alone.size() * sizeof(float)), "threads");
  }
}

}  // namespace

int main(int count, char** arguments) {
  const int rounds = count > 1 ? std::atoi(arguments[1]) : 50;
  for (const std::string& name : instruction_sets()) {
    const Kernels& k = kernels(name);
    for (int i = 0; i < 20 * rounds; ++i) {
      check_linear(k.fp32);
      check_linear(k.bf16);
      check_layers(k.fp32);
      check_layers(k.bf16);
      check_confidence(k);
      check_draw<float>(k);
      check_draw<double>(k);
    }
  }
  for (int i = 0; i < rounds; ++i) {
    check_decoder<float>();
    check_decoder<Bf16>();
  }
  std::printf("cpu kernels: %d rounds\n", rounds);
}
