// Finds several byte patterns in one pass (Aho-Corasick).
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace steer {

// Immutable. A search is a node number, which the caller keeps; kStart begins one.
class Automaton {
 public:
  static constexpr std::int32_t kStart = 0;

  // Throws std::invalid_argument on an empty pattern.
  explicit Automaton(const std::vector<std::string>& patterns);

  std::int32_t next(std::int32_t node, unsigned char byte) const { return nodes_[node].next[byte]; }
  // Length of the longest pattern that ends here, 0 if none.
  std::int32_t match(std::int32_t node) const { return nodes_[node].match; }
  // How many of the last bytes may yet grow into a pattern.
  std::int32_t pending(std::int32_t node) const { return nodes_[node].depth; }

 private:
  struct Node {
    std::array<std::int32_t, 256> next{};
    std::int32_t match = 0;
    std::int32_t depth = 0;
  };

  void insert(const std::string& pattern);
  void link();

  std::vector<Node> nodes_;
};

}  // namespace steer
