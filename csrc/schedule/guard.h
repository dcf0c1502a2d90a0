// Lowers the number of sequences at once while too much KV is given up, whatever the forecast says.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

namespace steer {

// Looks at one window of computed rows after the other. KV that is given up in one window is
// computed again in a later one, so it is counted where it is lost: there too many sequences ran. A
// small loss makes the forecast more cautious, as some lengths are harder to predict; a large one
// also lowers the number of sequences, whatever is forecast.
class Guard {
 public:
  // `most`: sequences at once while nothing is lost. `window`: rows.
  explicit Guard(std::int32_t most, std::int64_t window = 32768)
      : most_(most), limit_(most), window_(window) {}

  void lost(std::int64_t rows) { lost_ += rows; }
  // `rows` were computed while `active` sequences shared the arena.
  void computed(std::int64_t rows, std::int32_t active) {
    computed_ += rows;
    most_active_ = std::max(most_active_, active);
    if (computed_ < window_) return;
    const double share = static_cast<double>(lost_) / static_cast<double>(computed_);
    caution_ = std::clamp(caution_ + (share > kGood ? kMore : -kLess), kLeast, kMost);
    if (share > kBad) {
      const std::int32_t before =
          std::exchange(limit_, std::max(1, std::min(limit_, most_active_) * 7 / 8));
      acted_ += limit_ < before;
    } else {
      limit_ = std::min(most_, limit_ + limit_ / 8 + 1);
    }
    computed_ = lost_ = most_active_ = 0;
  }
  // Sequences that may share the arena now.
  std::int32_t limit() const { return limit_; }
  // Standard deviations of the forecast that must stay free on top of its mean.
  double caution() const { return caution_; }
  // How often the limit was lowered.
  std::int64_t acted() const { return acted_; }

 private:
  // Share of a window's rows lost to other sequences: acceptable, and too much.
  static constexpr double kGood = 0.01, kBad = 0.05;
  static constexpr double kLeast = 1, kMost = 4, kMore = 0.5, kLess = 0.1;  // of caution

  std::int32_t most_, limit_;
  double caution_ = 3;
  std::int32_t most_active_ = 0;  // in the window
  std::int64_t window_, computed_ = 0, lost_ = 0, acted_ = 0;
};

}  // namespace steer
