#include "kv/host_pool.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace steer {

namespace {

void expect(bool holds, const char* what) {
  if (!holds) throw std::logic_error(std::string("host pool: ") + what);
}

}  // namespace

HostPool::HostPool(Slot slots) {
  if (slots < 0) throw std::invalid_argument("host_blocks must be 0 (off) or more");
  states_.resize(slots);
  for (Slot slot = slots; slot-- > 0;) free_.push_back(slot);  // the lowest is taken first
}

std::optional<HostPool::Taken> HostPool::take(Node node) {
  Node displaced = kNone;
  if (free_.empty()) {
    const auto idle = std::ranges::find_if(used_, [&](Slot s) { return states_[s].held == 0; });
    if (idle == used_.end()) return std::nullopt;
    displaced = states_[*idle].node;
    drop(*idle);
  }
  const Slot slot = free_.back();
  free_.pop_back();
  states_[slot] = {node, 1, false, used_.insert(used_.end(), slot)};
  return Taken{slot, displaced};
}

void HostPool::touch(Slot slot) { used_.splice(used_.end(), used_, states_.at(slot).place); }

void HostPool::drop(Slot slot) {
  State& state = states_.at(slot);
  expect(state.node != kNone, "a slot is dropped that no node has");
  used_.erase(state.place);
  state.node = kNone;
  state.ready = false;
  if (state.held == 0) free_.push_back(slot);
}

void HostPool::hold(Slot slot) {
  expect(states_.at(slot).node != kNone, "a slot is held that no node has");
  ++states_[slot].held;
}

void HostPool::let_go(Slot slot) {
  State& state = states_.at(slot);
  expect(state.held > 0, "a slot is let go of that nobody holds");
  if (--state.held == 0 && state.node == kNone) free_.push_back(slot);
}

void HostPool::set_ready(Slot slot) { states_.at(slot).ready = states_[slot].node != kNone; }

void HostPool::check_integrity() const {
  std::size_t leaving = 0;
  for (const State& state : states_) {
    expect(state.held >= 0, "a slot is held less than never");
    expect(state.node != kNone || !state.ready, "a slot that no node has is ready");
    leaving += state.node == kNone && state.held > 0;
  }
  for (const Slot slot : used_) {
    expect(states_[slot].node != kNone, "a used slot has no node");
    expect(*states_[slot].place == slot, "a used slot is not where it says");
  }
  for (const Slot slot : free_)
    expect(states_[slot].node == kNone && states_[slot].held == 0, "a free slot is used");
  expect(free_.size() + used_.size() + leaving == states_.size(), "free + used == total");
}

}  // namespace steer
