// Slots of host memory for blocks that the arena had no room for: which node has which slot, and
// which slot is given up next. Moves numbers only; it never touches the memory.
//
// A slot is free, or it is used: by a node of the prefix cache, or only by ticks in flight that
// still read or write it. A slot can be read once the tick that writes it has retired.
#pragma once

#include <cstdint>
#include <list>
#include <optional>
#include <vector>

#include "kv/prefix_cache.h"

namespace steer {

class HostPool {
 public:
  using Slot = PrefixCache::Slot;
  using Node = PrefixCache::Node;
  static constexpr Node kNone = -1;

  struct Taken {
    Slot slot;
    Node displaced;  // lost its slot to this one; kNone: none did
  };

  // Throws std::invalid_argument if `slots` is below 0.
  explicit HostPool(Slot slots);

  // A slot for what `node` holds: a free one, else the least recently used that no tick in flight
  // needs; nothing if there is none. The caller holds it, and it is not ready.
  std::optional<Taken> take(Node node);
  // Marks a slot as used: slots used less recently are given up first.
  void touch(Slot slot);
  // Takes the slot from its node. It is free once no tick holds it.
  void drop(Slot slot);

  // A tick in flight reads or writes the slot, until it is released.
  void hold(Slot slot);
  void let_go(Slot slot);
  // The slot now holds its node's content. No effect on a slot that was dropped.
  void set_ready(Slot slot);
  bool is_ready(Slot slot) const { return states_.at(slot).ready; }
  // The node that has the slot; kNone if it was dropped.
  Node node(Slot slot) const { return states_.at(slot).node; }
  std::int32_t holders(Slot slot) const { return states_.at(slot).held; }

  Slot total() const { return static_cast<Slot>(states_.size()); }
  Slot free() const { return static_cast<Slot>(free_.size()); }
  // Slots that nodes have, least recently used first.
  const std::list<Slot>& used() const { return used_; }

  // Checks that free + used == total, including slots that only ticks in flight use. Throws
  // std::logic_error.
  void check_integrity() const;

 private:
  struct State {
    Node node = kNone;
    std::int32_t held = 0;  // times
    bool ready = false;
    std::list<Slot>::iterator place{};  // while a node has it
  };

  std::vector<State> states_;
  std::vector<Slot> free_;
  std::list<Slot> used_;
};

}  // namespace steer
