// Slots of host memory that keep blocks which the arena had no room for: which is whose, and which
// is given up for the next one. Moves numbers only; it never touches the memory.
//
// A slot is free, or it is used: by a prefix cache's node, or only by ticks in flight that still
// read or write it. What a slot holds can be read once the tick that writes it has retired.
#pragma once

#include <cstdint>
#include <list>
#include <optional>
#include <vector>

#include "prefix_cache.h"

namespace steer {

class HostPool {
 public:
  using Slot = PrefixCache::Slot;
  using Node = PrefixCache::Node;
  static constexpr Node kNone = -1;

  struct Taken {
    Slot slot;
    Node displaced;  // lost its slot to this, kNone: nobody did
  };

  // Throws std::invalid_argument if there are less than 0.
  explicit HostPool(Slot slots);

  // A slot for what `node` holds: a free one, else the least recently used that no tick in flight
  // needs; nothing if there is none. It is held by who takes it, and not ready.
  std::optional<Taken> take(Node node);
  // It was used: later ones are given up first.
  void touch(Slot slot);
  // Its node does without it from now on. Free once nobody holds it.
  void drop(Slot slot);

  // A tick in flight reads or writes the slot, until it is let go of.
  void hold(Slot slot);
  void let_go(Slot slot);
  // What its node had is there. Without effect on one that was dropped.
  void set_ready(Slot slot);
  bool is_ready(Slot slot) const { return states_.at(slot).ready; }
  // Whose it is; kNone if it was dropped.
  Node node(Slot slot) const { return states_.at(slot).node; }
  std::int32_t holders(Slot slot) const { return states_.at(slot).held; }

  Slot total() const { return static_cast<Slot>(states_.size()); }
  Slot free() const { return static_cast<Slot>(free_.size()); }
  // Slots that nodes have, least recently used first.
  const std::list<Slot>& used() const { return used_; }

  // Proves that free + used == total, those that only ticks in flight use included. Throws
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
