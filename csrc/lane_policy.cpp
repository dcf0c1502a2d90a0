#include "lane_policy.h"

#include <algorithm>
#include <stdexcept>

namespace steer {

void check(const LaneSettings& settings) {
  if (settings.gather < 0 || settings.hold_ticks < 1 || settings.automatic_from < 0)
    throw std::invalid_argument(
        "gather and automatic_from must be 0 or more, hold_ticks at least 1");
  for (int lane = 0; lane < kModels; ++lane)
    if (!(settings.tick_cost[lane] > 0 && settings.lane_weight[lane] > 0))
      throw std::invalid_argument("tick_cost and lane_weight must be above 0");
}

LanePolicy lane_policy_named(const std::string& name) {
  if (name == "latency") return LanePolicy::latency;
  if (name == "weighted") return LanePolicy::weighted;
  if (name == "throughput") return LanePolicy::throughput;
  if (name == "auto") return LanePolicy::automatic;
  throw std::invalid_argument("unknown lane policy '" + name +
                              "'; known: latency, weighted, throughput, auto");
}

bool LaneTurns::holds(int lane, bool other_in_flight, std::int32_t running, std::int32_t runnable) {
  const int other = 1 - lane;
  const bool other_can = other_in_flight || !stalled_[other];
  switch (settings_.policy) {
    case LanePolicy::latency:
      return false;
    case LanePolicy::weighted:
      return other_can && used_[lane] > used_[other];
    case LanePolicy::automatic:
      if (running <= settings_.automatic_from) return false;
      [[fallthrough]];
    case LanePolicy::throughput:
      return gathers(lane, other_in_flight, running, runnable);
  }
  return false;
}

// The small lane's turn ends when enough large steps wait, one has waited long enough, or nothing
// is left to do there; the large lane's when its batch of steps has run out.
bool LaneTurns::gathers(int lane, bool other_in_flight, std::int32_t running,
                        std::int32_t runnable) {
  if (other_in_flight) return true;
  const std::int32_t enough = settings_.gather > 0 ? settings_.gather : std::max(1, running / 2);
  const bool full = !stalled_[kLarge] && runnable > 0 &&
                    (runnable >= enough || held_ticks_ >= settings_.hold_ticks);
  if (turn_ == kSmall && full) turn_ = kLarge;
  if (lane != turn_ && stalled_[turn_]) turn_ = lane;
  if (turn_ == kLarge) held_ticks_ = 0;
  return lane != turn_;
}

void LaneTurns::planned(int lane, bool empty, bool large_waits) {
  stalled_[lane] = empty;
  const bool rested = rested_[lane];
  rested_[lane] = empty;
  if (empty) return;
  // Time that a lane had no use for is not saved up.
  if (rested) used_[lane] = std::max(used_[lane], used_[1 - lane]);
  used_[lane] += settings_.tick_cost[lane] / settings_.lane_weight[lane];
  if (lane == kSmall && large_waits) ++held_ticks_;
}

}  // namespace steer
