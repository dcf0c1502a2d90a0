// Fewer sequences at once while too much is computed again, whatever the forecast says.
#pragma once

#include <algorithm>
#include <cstdint>

namespace steer {

class Guard {
 public:
  // `most`: sequences at once where nothing is wrong.
  explicit Guard(std::int32_t most) : most_(most), limit_(most) {}

  // Rows were computed, `again` of them not for the first time, while `active` sequences shared
  // the arena.
  void computed(std::int64_t rows, std::int64_t again, std::int32_t active) {
    rows_ += rows;
    again_ += again;
    if (again_ > kWindow / kShare) {
      limit_ = std::max(1, std::min(limit_, active) * 7 / 8);
      ++acted_;
    } else if (rows_ >= kWindow) {
      limit_ = std::min(most_, limit_ + limit_ / 8 + 1);
    } else {
      return;
    }
    rows_ = again_ = 0;
  }
  // Sequences that may share the arena now.
  std::int32_t limit() const { return limit_; }
  // How often the limit was lowered.
  std::int64_t acted() const { return acted_; }

 private:
  static constexpr std::int64_t kWindow = 32768;  // rows
  static constexpr std::int64_t kShare = 20;      // one in so many of them may be computed again

  std::int32_t most_, limit_;
  std::int64_t rows_ = 0, again_ = 0, acted_ = 0;
};

}  // namespace steer
