#include "text/loop_guard.h"

#include <algorithm>

namespace steer {

LoopGuard::LoopGuard(std::int32_t max_repeats)
    : max_repeats_(max_repeats), runs_(max_repeats > 0 ? kLongestPiece : 0) {}

bool LoopGuard::feed(std::span<const Token> text) {
  bool loop = false;
  const auto longest = std::min<std::size_t>(runs_.size(), text.empty() ? 0 : text.size() - 1);
  for (std::size_t piece = 1; piece <= longest; ++piece) {
    std::int32_t& run = runs_[piece - 1];
    run = text.back() == text[text.size() - 1 - piece] ? run + 1 : 0;
    const auto length = static_cast<std::int32_t>(piece);  // the first piece is not in the run
    const auto needed = static_cast<std::int64_t>(max_repeats_ - 1) * length;
    loop |= run >= needed && run + length >= kShortestLoop;
  }
  return loop;
}

// A run is short, or the text would have ended.
void LoopGuard::rewind(std::span<const Token> text) {
  for (std::size_t piece = 1; piece <= runs_.size(); ++piece) {
    std::int32_t& run = runs_[piece - 1];
    run = 0;
    for (std::size_t i = text.size(); i > piece && text[i - 1] == text[i - 1 - piece]; --i) ++run;
  }
}

}  // namespace steer
