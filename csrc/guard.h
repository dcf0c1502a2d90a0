// Fewer sequences at once while too much KV is given up, whatever the forecast says.
#pragma once

#include <algorithm>
#include <cstdint>

namespace steer {

// Looks at one window of computed rows after the other. What is given up in one is computed again
// in a later one, so it is counted where it is lost: there the number of sequences was too high.
class Guard {
 public:
  // `most`: sequences at once where nothing is wrong.
  explicit Guard(std::int32_t most) : most_(most), limit_(most) {}

  void lost(std::int64_t rows) { lost_ += rows; }
  // So many rows were computed while `active` sequences shared the arena.
  void computed(std::int64_t rows, std::int32_t active) {
    computed_ += rows;
    if (computed_ < kWindow) return;
    if (lost_ * kShare > computed_) {
      limit_ = std::max(1, std::min(limit_, active) * 7 / 8);
      ++acted_;
    } else {
      limit_ = std::min(most_, limit_ + limit_ / 8 + 1);
    }
    computed_ = lost_ = 0;
  }
  // Sequences that may share the arena now.
  std::int32_t limit() const { return limit_; }
  // How often the limit was lowered.
  std::int64_t acted() const { return acted_; }

 private:
  static constexpr std::int64_t kWindow = 32768;  // rows
  static constexpr std::int64_t kShare = 20;      // one in so many of them may be lost

  std::int32_t most_, limit_;
  std::int64_t computed_ = 0, lost_ = 0, acted_ = 0;
};

}  // namespace steer
