// Detects a text that repeats itself.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "types.h"

namespace steer {

// A loop: the last tokens are one piece of at most kLongestPiece tokens `max_repeats` times in a
// row, and at least kShortestLoop tokens in all (a few dots in a row are no loop).
class LoopGuard {
 public:
  static constexpr std::int32_t kLongestPiece = 256;
  static constexpr std::int32_t kShortestLoop = 32;

  // 0 repeats: never a loop, and no memory used. Otherwise at least 2.
  explicit LoopGuard(std::int32_t max_repeats = 0);

  // `text` ends with one token more than at the last call. True in a loop.
  bool feed(std::span<const Token> text);
  // Goes back to `text`, as if it had been fed token by token.
  void rewind(std::span<const Token> text);

 private:
  std::int32_t max_repeats_;
  std::vector<std::int32_t> runs_;  // [piece - 1]: last tokens that equal the one a piece before
};

}  // namespace steer
