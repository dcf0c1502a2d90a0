#include "step_detector.h"

#include <algorithm>
#include <queue>
#include <stdexcept>
#include <utility>

namespace steer {

StepDetector::StepDetector(const std::vector<std::string>& delimiters,
                           std::vector<std::string> token_bytes)
    : nodes_(1), token_bytes_(std::move(token_bytes)) {
  if (delimiters.empty()) throw std::invalid_argument("at least one delimiter is needed");
  for (const auto& delimiter : delimiters) {
    if (delimiter.empty()) throw std::invalid_argument("a delimiter must not be empty");
    insert(delimiter);
  }
  link();
}

void StepDetector::insert(const std::string& delimiter) {
  std::int32_t node = 0;
  for (const unsigned char byte : delimiter) {
    if (nodes_[node].next[byte] == 0) {
      nodes_[node].next[byte] = static_cast<std::int32_t>(nodes_.size());
      nodes_.emplace_back();
    }
    node = nodes_[node].next[byte];
  }
  nodes_[node].match = static_cast<std::int32_t>(delimiter.size());
}

// Aho-Corasick: breadth first, missing edges are borrowed from the longest proper suffix.
void StepDetector::link() {
  std::vector<std::int32_t> suffix(nodes_.size(), 0);
  std::queue<std::int32_t> todo;
  for (const auto child : nodes_[0].next)
    if (child != 0) todo.push(child);
  for (; !todo.empty(); todo.pop()) {
    const std::int32_t node = todo.front();
    nodes_[node].match = std::max(nodes_[node].match, nodes_[suffix[node]].match);
    for (int byte = 0; byte < 256; ++byte) {
      std::int32_t& child = nodes_[node].next[byte];
      const std::int32_t borrowed = nodes_[suffix[node]].next[byte];
      if (child == 0) {
        child = borrowed;
      } else {
        suffix[child] = borrowed;
        todo.push(child);
      }
    }
  }
}

bool StepDetector::feed(Cursor& cursor, Token token) const {
  if (token < 0 || static_cast<std::size_t>(token) >= token_bytes_.size()) return false;
  const std::string& text = token_bytes_[token];
  bool matched = false;
  for (const unsigned char byte : text) {
    ++cursor.bytes;
    cursor.node = nodes_[cursor.node].next[byte];
    if (nodes_[cursor.node].match == 0) continue;
    matched = true;
    // A match may begin in the step before: only what lies in this one counts.
    cursor.delimiter_bytes += std::min<std::int64_t>(nodes_[cursor.node].match, cursor.bytes);
    cursor.node = 0;
  }
  return matched && cursor.delimiter_bytes < cursor.bytes;
}

}  // namespace steer
