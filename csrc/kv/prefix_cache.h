// The content of full blocks, so that a later sequence with the same prefix finds them.
//
// A node stands for one full block of one model and the whole prefix before it: it is found by its
// parent and the block's own tokens, and a hit compares the tokens. Node numbers are never used
// again, so the children of a forgotten node can never be found under another. The KV of a node
// lies in a block, in a slot of host memory (see kv/parking.cpp), or in both: a node that has
// neither is forgotten.
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
  static constexpr std::int32_t kNowhere = -1;
  using Node = std::int64_t;
  using Slot = std::int32_t;
  static constexpr Node kRoot = 0;  // the empty prefix

  struct Hit {
    Node node;
    BlockId block;
  };
  struct HostHit {
    Node node;
    Slot slot;
  };

  // The block of `model` that holds `tokens` after the prefix of `parent`.
  std::optional<Hit> find(int model, Node parent, std::span<const Token> tokens) const;
  // Registers a block that holds `tokens`. If another block already holds them, its node is
  // returned and `block` stays unknown.
  Node insert(int model, Node parent, std::span<const Token> tokens, BlockId block);
  // Does the cache know what this block holds?
  bool holds(int model, BlockId block) const { return by_block_[model].contains(block); }
  // Forgets a block, parked or not; unknown ones are ignored.
  void forget(int model, BlockId block);

  // As find(), for blocks in host memory.
  std::optional<HostHit> find_on_host(int model, Node parent, std::span<const Token> tokens) const;
  // The node of a known block.
  Node node(int model, BlockId block) const { return by_block_[model].at(block); }
  // The node's slot in host memory; kNowhere if it has none or is forgotten.
  Slot slot(Node node) const;
  void set_slot(Node node, Slot slot);
  // The node has its slot no more; no effect where slot() is kNowhere.
  void clear_slot(Node node);
  // Nodes in host memory.
  std::size_t on_host() const;
  // `block` holds the node's KV; no effect if another block does, or if the node is forgotten.
  void attach(Node node, BlockId block);

  // A known block without references is parked; the pool keeps it until it is taken or evicted.
  void park(int model, BlockId block);
  void unpark(int model, BlockId block);
  // Parked blocks, least recently parked first.
  const std::list<BlockId>& parked(int model) const { return parked_[model]; }

 private:
  struct Entry {
    std::uint64_t key;
    int model;
    Node parent;
    std::vector<Token> tokens;
    BlockId block;         // kNowhere: in host memory only
    Slot slot = kNowhere;  // of host memory
    bool is_parked = false;
    std::list<BlockId>::iterator place{};
  };

  using Entries = std::unordered_map<Node, Entry>;

  static std::uint64_t hash(int model, Node parent, std::span<const Token> tokens);
  Entries::const_iterator match(int model, Node parent, std::span<const Token> tokens) const;
  void forget_if_nowhere(Entries::iterator entry);

  Entries entries_;
  std::unordered_map<std::uint64_t, Node> by_key_;
  std::array<std::unordered_map<BlockId, Node>, kModels> by_block_;
  std::array<std::list<BlockId>, kModels> parked_;
  Node next_ = kRoot + 1;
};

}  // namespace steer
