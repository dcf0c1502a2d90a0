#include "schedule/lane_policy.h"

#include <algorithm>
#include <cmath>
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

bool LaneTurns::holds(int lane, bool other_in_flight, std::int32_t running,
                      std::array<std::int32_t, kModels> runnable) {
  if (owed_[lane]) return false;
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
      return other_can && (other_in_flight || lane != turn(running, runnable));
  }
  return false;
}

// A large tick costs about the same however many sequences share it, so it is worth its time while
// enough of them do. Otherwise the small lane brings more. A lane that was held for long goes.
int LaneTurns::turn(std::int32_t running, std::array<std::int32_t, kModels> runnable) const {
  if (runnable[kLarge] == 0) return kSmall;
  if (runnable[kSmall] > 0 && waited_[kSmall] >= settings_.hold_ticks) return kSmall;
  if (waited_[kLarge] >= settings_.hold_ticks) return kLarge;
  return runnable[kLarge] >= enough(running) ? kLarge : kSmall;
}

// Of n sequences let x n share the large ticks and the rest the small ones. W tokens of a lane at a
// cost of c per tick take W_large c_large / (x n) + W_small c_small / ((1 - x) n). The minimum is
// where x : (1 - x) is the square root of W_large c_large : W_small c_small.
std::int32_t LaneTurns::enough(std::int32_t running) const {
  if (settings_.gather > 0) return std::min(settings_.gather, running);
  const auto weight = [this](int lane) {
    return std::sqrt((drawn_[lane] + 1) * settings_.tick_cost[lane]);
  };
  const double share = weight(kLarge) / (weight(kLarge) + weight(kSmall));
  return std::max(1, static_cast<std::int32_t>(std::lround(share * running)));
}

void LaneTurns::planned(int lane, std::int32_t sequences,
                        std::array<std::int32_t, kModels> runnable) {
  const int other = 1 - lane;
  const bool empty = sequences == 0;
  stalled_[lane] = empty;
  owed_[lane] = false;
  owed_[other] = empty;
  const bool rested = rested_[lane];
  rested_[lane] = empty;
  if (empty) return;
  // A lane does not save up time for which it had no work.
  if (rested) used_[lane] = std::max(used_[lane], used_[other]);
  used_[lane] += settings_.tick_cost[lane] / settings_.lane_weight[lane];
  drawn_[lane] += sequences;
  if (drawn_[lane] > kMemory)
    for (double& drawn : drawn_) drawn /= 2;
  waited_[lane] = 0;
  waited_[other] = runnable[other] > 0 ? waited_[other] + 1 : 0;
}

}  // namespace steer
