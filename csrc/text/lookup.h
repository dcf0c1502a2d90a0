// Guesses at how a text goes on, from the text itself.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "types.h"

namespace steer {

// Longer matches are not told apart: their guesses are right hardly more often.
inline constexpr std::int32_t kLongestMatch = 5;

// The text's last tokens, at least `shortest` of them, stood in it before: the `count` tokens that
// followed there. The longest match counts, and of equal ones the last. Where fewer followed, the
// text repeats itself, and so do the guesses. None without a match.
// Reads the whole text: about 1 ns for each of its tokens.
std::vector<Token> look_up(std::span<const Token> text, std::int32_t shortest, std::int32_t count);

}  // namespace steer
