// What full blocks hold, so that a later sequence with the same prefix finds them.
//
// A node stands for one full block of one model and the whole prefix before it: it is found by its
// parent and the block's own tokens, and a hit compares the tokens. Node numbers are never used
// again, so the children of a forgotten node can never be found under another.
#pragma once

#include <array>
#include <cstdint>
#include <list>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "types.h"

namespace steer {

class PrefixCache {
 public:
  using Node = std::int64_t;
  static constexpr Node kRoot = 0;  // the empty prefix

  struct Hit {
    Node node;
    BlockId block;
  };

  // The block of `model` that holds `tokens` behind the prefix of `parent`.
  std::optional<Hit> find(int model, Node parent, std::span<const Token> tokens) const;
  // Registers a block that holds `tokens`. Where another block already does, its node is returned
  // and `block` stays unknown.
  Node insert(int model, Node parent, std::span<const Token> tokens, BlockId block);
  // Does the cache know what this block holds?
  bool holds(int model, BlockId block) const { return by_block_[model].contains(block); }
  // Forgets a block, parked or not; unknown ones are ignored.
  void forget(int model, BlockId block);

  // A known block without references is parked; the pool keeps it until it is taken or evicted.
  void park(int model, BlockId block);
  void unpark(int model, BlockId block);
  // Parked blocks, least recently parked first.
  const std::list<BlockId>& parked(int model) const { return parked_[model]; }

 private:
  struct Entry {
    std::uint64_t key;
    Node parent;
    std::vector<Token> tokens;
    BlockId block;
    bool is_parked = false;
    std::list<BlockId>::iterator place{};
  };

  static std::uint64_t hash(int model, Node parent, std::span<const Token> tokens);

  std::unordered_map<Node, Entry> entries_;
  std::unordered_map<std::uint64_t, Node> by_key_;
  std::array<std::unordered_map<BlockId, Node>, kModels> by_block_;
  std::array<std::list<BlockId>, kModels> parked_;
  Node next_ = kRoot + 1;
};

}  // namespace steer
