#include "draw.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace steer::cpu {

namespace {

constexpr float kNone = std::numeric_limits<float>::infinity();
constexpr std::int64_t kShort = 1024;  // tokens that are sorted without a second thought
constexpr int kRefinements = 8;        // equal logits cannot be told apart
constexpr double kStep = 2;  // nats between the first rungs; times T where that is above 1

// In order of likelihood (equals by the lower id) each filter keeps a beginning of the row. So it
// is looked for as the place where a sum over all likelier tokens reaches a goal: first to within
// one of a few distances from the top (rungs), then among the tokens of that rung alone, until
// there are so few that they can be sorted.
template <typename T>
class Edges {
 public:
  Edges(const RaceKernels<T>& kernels, const T* z, std::int64_t size, T top, double temperature)
      : k_(kernels), z_(z), size_(size), top_(top), temperature_(temperature) {
    floors_between(0, static_cast<float>(-kStep * kRungs * std::max(temperature, 1.0)));
    std::copy_n(floors_, kRungs, first_floors_);
    k_.count_rungs(z, size, top, temperature, floors_, rungs_);
  }

  // The cut after the `count` likeliest.
  Cut after_tokens(std::int64_t count) {
    return search([count](std::int64_t tokens, double) { return tokens >= count; });
  }

  // The cut after the token with which the mass reaches `goal`.
  Cut after_mass(double goal) {
    return search([goal](std::int64_t, double mass) { return mass >= goal; });
  }

  // Of all tokens; of those that the last cut kept.
  double total() const { return rungs_.total; }
  double kept_mass() const { return above_mass_; }

 private:
  struct Token {
    double z;
    std::int32_t id;
  };

  void floors_between(float high, float low) {
    for (int r = 0; r + 1 < kRungs; ++r)
      floors_[r] = high + (low - high) * (static_cast<float>(r + 1) / kRungs);
    floors_[kRungs - 1] = low;
  }

  // Keeps of the band's tokens those within the first rung that reaches the goal and below the one
  // before it, or below the last rung; false if there is no end to these.
  template <typename Reached>
  bool narrow(const Rungs& rungs, Reached reached) {
    int r = 0;
    while (r < kRungs && !reached(above_tokens_ + rungs.tokens[r], above_mass_ + rungs.masses[r]))
      ++r;
    const bool bounded = r < kRungs;
    floor_ = bounded ? floors_[r] : -kNone;
    // Few tokens are taken from the top on: then their sums are exact.
    if (r == 0 || (bounded && !above_tokens_ && rungs.tokens[r] <= kShort)) return bounded;
    ceiling_ = floors_[r - 1];
    above_tokens_ += rungs.tokens[r - 1];
    above_mass_ += rungs.masses[r - 1];
    return bounded;
  }

  // The band's tokens become those between its floor and its ceiling.
  void take(const T* values, std::int64_t size, bool all) {
    places_.resize(size);
    const auto count = k_.gather(values, size, top_, ceiling_, floor_, places_.data());
    std::vector<T> kept(count);
    std::vector<std::int32_t> ids(count);
    for (std::int64_t i = 0; i < count; ++i) {
      kept[i] = values[places_[i]];
      ids[i] = all ? places_[i] : ids_[places_[i]];
    }
    values_.swap(kept);
    ids_.swap(ids);
  }

  template <typename Reached>
  Cut search(Reached reached) {
    ceiling_ = kNone;
    above_tokens_ = 0;
    above_mass_ = 0;
    std::copy_n(first_floors_, kRungs, floors_);
    bool bounded = narrow(rungs_, reached);
    take(z_, size_, true);
    for (int i = 0; bounded && size() > kShort && i < kRefinements; ++i) {
      floors_between(std::min(ceiling_, 0.0f), floor_);
      Rungs finer;
      k_.count_rungs(values_.data(), size(), top_, temperature_, floors_, finer);
      bounded = narrow(finer, reached);
      take(values_.data(), size(), false);
    }
    return walk(reached);
  }

  // Through the band's tokens, the likeliest first, up to the one that reaches the goal.
  template <typename Reached>
  Cut walk(Reached reached) {
    std::vector<Token> tokens;
    for (std::int64_t i = 0; i < size(); ++i) tokens.push_back({values_[i], ids_[i]});
    std::sort(tokens.begin(), tokens.end(),
              [](Token a, Token b) { return a.z > b.z || (a.z == b.z && a.id < b.id); });
    Cut cut;
    for (const Token& token : tokens) {
      cut.least = token.z;
      cut.last = token.id;
      above_mass_ += std::exp((token.z - top_) / temperature_);
      if (reached(++above_tokens_, above_mass_)) break;
    }
    return cut;
  }

  std::int64_t size() const { return static_cast<std::int64_t>(ids_.size()); }

  const RaceKernels<T>& k_;
  const T* z_;
  const std::int64_t size_;
  const T top_;
  const double temperature_;
  float first_floors_[kRungs], floors_[kRungs];
  Rungs rungs_{};  // of the whole row
  // The band: tokens below top + ceiling and of at least top + floor, and what is above it.
  float ceiling_ = kNone, floor_ = -kNone;
  std::int64_t above_tokens_ = 0;
  double above_mass_ = 0;
  std::vector<T> values_;
  std::vector<std::int32_t> ids_, places_;
};

// The cut of top-k and then top-p.
template <typename T>
Cut cut_of(Edges<T> edges, std::int64_t top_k, double top_p) {
  if (!top_k) return edges.after_mass(top_p * edges.total());
  const Cut outer = edges.after_tokens(top_k);
  if (top_p >= 1) return outer;
  const Cut inner = edges.after_mass(top_p * edges.kept_mass());
  return outer.keeps(inner.least, inner.last) ? inner : outer;
}

template <typename T>
std::int64_t draw(const RaceKernels<T>& kernels, const T* z, std::int64_t size, const RaceKey& key,
                  const Filters& filters) {
  T top;
  std::int64_t first;
  if (!kernels.find_top(z, size, top, first)) return 0;
  if (!(key.temperature > 0)) return first;
  const std::int64_t top_k = filters.top_k < size ? filters.top_k : 0;
  Cut cut;
  if (top_k || filters.top_p < 1)
    cut = cut_of(Edges<T>(kernels, z, size, top, key.temperature), top_k, filters.top_p);
  cut.min_p = filters.min_p;
  return kernels.race(z, size, top, first, key, cut);
}

}  // namespace

std::int64_t draw(const Kernels& kernels, const float* z, std::int64_t size, const RaceKey& key,
                  const Filters& filters) {
  return draw(kernels.draw32, z, size, key, filters);
}

std::int64_t draw(const Kernels& kernels, const double* z, std::int64_t size, const RaceKey& key,
                  const Filters& filters) {
  return draw(kernels.draw64, z, size, key, filters);
}

}  // namespace steer::cpu
