// Which lane may run: both models share one memory bandwidth.
#pragma once

#include <array>
#include <cstdint>

#include "types.h"

namespace steer {

// latency     every lane runs whenever it can
// weighted    the lanes share the time: one that has used more than its weight waits for the other
// throughput  one lane at a time: the large one while enough sequences share its ticks
// automatic   latency while few sequences run, throughput above
enum class LanePolicy { latency, weighted, throughput, automatic };
inline constexpr std::array kLanePolicyNames{"latency", "weighted", "throughput", "auto"};
static_assert(names_all(kLanePolicyNames, LanePolicy::automatic));

struct LaneSettings {
  LanePolicy policy = LanePolicy::latency;
  std::int32_t gather = 0;          // sequences that are worth a large tick; 0: computed
  std::int32_t hold_ticks = 32;     // most ticks of the other lane for which one with work is held
  std::int32_t automatic_from = 4;  // running sequences above which steps gather
  std::array<double, kModels> tick_cost{1, 1};    // time of a tick, in any common unit
  std::array<double, kModels> lane_weight{1, 1};  // share of the time, relative
};

// Throws std::invalid_argument on settings that make no sense.
void check(const LaneSettings& settings);

// Decides before each plan. A lane that is held plans nothing now and asks again; it is never held
// while the other one can do nothing, so both must be asked in turn. If it was held and the other
// then had nothing to do, it goes next, whatever work the other has got meanwhile.
class LaneTurns {
 public:
  explicit LaneTurns(const LaneSettings& settings) : settings_(settings) {}

  // Must `lane` wait? `running` sequences in all, `runnable` now on each lane.
  bool holds(int lane, bool other_in_flight, std::int32_t running,
             std::array<std::int32_t, kModels> runnable);
  // A lane has planned; an empty plan means that it can do nothing until something changes.
  void planned(int lane, std::int32_t sequences, std::array<std::int32_t, kModels> runnable);
  // Something may have given a lane work or memory.
  void changed() { stalled_ = {}; }

 private:
  static constexpr double kMemory = 16384;  // tokens of a lane after which older ones count half

  int turn(std::int32_t running, std::array<std::int32_t, kModels> runnable) const;
  std::int32_t enough(std::int32_t running) const;

  LaneSettings settings_;
  std::array<bool, kModels> stalled_{};
  std::array<bool, kModels> owed_{};    // the other one has planned nothing since this one planned
  std::array<bool, kModels> rested_{};  // had nothing to do when it last planned
  std::array<double, kModels> used_{};
  std::array<double, kModels> drawn_{};         // recent tokens, older ones decayed
  std::array<std::int32_t, kModels> waited_{};  // ticks of the other lane since its last one
};

}  // namespace steer
