#include "text/lookup.h"

#include <algorithm>

namespace steer {

namespace {

// How many of the text's last tokens, at most kLongestMatch, stand before `end` as well?
std::int32_t match_before(std::span<const Token> text, std::int32_t end) {
  const auto length = static_cast<std::int32_t>(text.size());
  const std::int32_t most = std::min(end, kLongestMatch);
  std::int32_t match = 0;
  while (match < most && text[end - 1 - match] == text[length - 1 - match]) ++match;
  return match;
}

}  // namespace

std::vector<Token> look_up(std::span<const Token> text, std::int32_t shortest, std::int32_t count) {
  const auto length = static_cast<std::int32_t>(text.size());
  std::int32_t longest = shortest - 1, found = -1;
  for (std::int32_t end = length - 1; end > longest && longest < kLongestMatch; --end) {
    const std::int32_t match = match_before(text, end);
    if (match > longest) longest = match, found = end;
  }
  std::vector<Token> guesses;
  if (found < 0) return guesses;
  for (std::int32_t i = 0; i < count; ++i)
    guesses.push_back(found + i < length ? text[found + i] : guesses[found + i - length]);
  return guesses;
}

}  // namespace steer
