// Predicts what requests will need until they end, from those before them.
//
// Lengths are learned as hazards: the share of the requests that reached a length which ended there
// (Kaplan-Meier, in buckets that widen with the length). Requests that still run count up to their
// present length, so that the first ones to end, which are short, do not stand for all. How often a
// model is entered is learned as a rate. Everything is a function of what was recorded: the same
// history gives the same forecast.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "types.h"

namespace steer {

inline constexpr std::size_t kLengthBuckets = 8 * 24;  // eight an octave: edges lie 9% apart

// The probability that an answer is longer than a number of tokens.
class Survival {
 public:
  explicit Survival(const std::array<double, kLengthBuckets>& hazards);
  // ln of the probability that an answer is longer than `tokens`.
  double log(double tokens) const;
  // The least t such that an answer of `tokens` goes on for t more with a probability below 1%.
  double horizon(double tokens) const;

 private:
  std::array<double, kLengthBuckets + 1> log_{};
};

class Forecast {
 public:
  // An answer has ended after `tokens`. `natural`: by its text, and not by a limit or a caller,
  // which say nothing about how long it would have been.
  void ended(std::int32_t tokens, bool natural);
  // `model` has written a token.
  void wrote(int model);
  // A sequence was handed to `model`.
  void entered(int model) { entries_[model] += 1; }

  // Lengths as known now. `running`: tokens that each running answer has. `bound`: the mean of
  // their max_tokens: where nothing is known the median answer is half of it.
  Survival survival(const std::vector<std::int32_t>& running, double bound) const;
  // Entries per token while a sequence is on the other model.
  double entry_rate(int model) const { return entries_[model] / idle_tokens_[model]; }

 private:
  std::array<double, kLengthBuckets> ends_{};     // natural ends in each bucket
  std::array<double, kLengthBuckets> reached_{};  // requests that went through it or ended there
  // The prior: a sequence enters both models soon.
  std::array<double, kModels> entries_{0.25, 0.25};
  std::array<double, kModels> idle_tokens_{16, 16};
};

}  // namespace steer
