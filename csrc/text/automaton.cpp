#include "text/automaton.h"

#include <algorithm>
#include <queue>
#include <stdexcept>

namespace steer {

Automaton::Automaton(const std::vector<std::string>& patterns) : nodes_(1) {
  for (const auto& pattern : patterns) {
    if (pattern.empty())
      throw std::invalid_argument("a delimiter or stop string must not be empty");
    insert(pattern);
  }
  link();
}

void Automaton::insert(const std::string& pattern) {
  std::int32_t node = kStart;
  for (const unsigned char byte : pattern) {
    if (nodes_[node].next[byte] == 0) {
      const std::int32_t depth = nodes_[node].depth + 1;
      nodes_[node].next[byte] = static_cast<std::int32_t>(nodes_.size());
      nodes_.emplace_back();
      nodes_.back().depth = depth;
    }
    node = nodes_[node].next[byte];
  }
  nodes_[node].match = static_cast<std::int32_t>(pattern.size());
}

// Breadth first: missing edges are borrowed from the longest proper suffix.
void Automaton::link() {
  std::vector<std::int32_t> suffix(nodes_.size(), kStart);
  std::queue<std::int32_t> todo;
  for (const auto child : nodes_[kStart].next)
    if (child != kStart) todo.push(child);
  for (; !todo.empty(); todo.pop()) {
    const std::int32_t node = todo.front();
    nodes_[node].match = std::max(nodes_[node].match, nodes_[suffix[node]].match);
    for (int byte = 0; byte < 256; ++byte) {
      std::int32_t& child = nodes_[node].next[byte];
      const std::int32_t borrowed = nodes_[suffix[node]].next[byte];
      if (child == kStart) {
        child = borrowed;
      } else {
        suffix[child] = borrowed;
        todo.push(child);
      }
    }
  }
}

}  // namespace steer
