#include "text/step_detector.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

namespace steer {

StepDetector::StepDetector(const std::vector<std::string>& delimiters,
                           std::vector<std::string> token_bytes)
    : automaton_(delimiters), token_bytes_(std::move(token_bytes)) {
  if (delimiters.empty()) throw std::invalid_argument("at least one delimiter is needed");
}

const std::string& StepDetector::text(Token token) const {
  static const std::string kNone;
  const bool known = token >= 0 && static_cast<std::size_t>(token) < token_bytes_.size();
  return known ? token_bytes_[token] : kNone;
}

bool StepDetector::feed(Cursor& cursor, Token token) const {
  bool matched = false;
  for (const unsigned char byte : text(token)) {
    ++cursor.bytes;
    cursor.node = automaton_.next(cursor.node, byte);
    const std::int32_t match = automaton_.match(cursor.node);
    if (match == 0) continue;
    matched = true;
    // A match may begin in the step before: only its bytes in this one count.
    cursor.delimiter_bytes += std::min<std::int64_t>(match, cursor.bytes);
    cursor.node = Automaton::kStart;
  }
  return matched && cursor.delimiter_bytes < cursor.bytes;
}

}  // namespace steer
