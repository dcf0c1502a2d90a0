#include "schedule/forecast.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace steer {

namespace {

constexpr double kPerOctave = 8;
constexpr double kRemembered = 64;         // ended requests over which hazards are averaged
constexpr double kTokensRemembered = 1e5;  // tokens over which entry rates are averaged
constexpr double kPriorRequests = 0.25;    // weight of the prior in each bucket, in requests
constexpr double kPriorScale = 0.5;        // median answer of the prior, as a share of the bound
constexpr double kRare = -4.6;             // ln of 1%
constexpr double kMostHazard = 1 - 1e-9;

double edge(std::size_t bucket) { return std::exp2(static_cast<double>(bucket) / kPerOctave) - 1; }

// The bucket of a length, and its place within the bucket, from 0 to 1.
struct Place {
  std::size_t bucket;
  double share;
};

Place place(double tokens) {
  const double at = kPerOctave * std::log2(std::max(0.0, tokens) + 1);
  const auto bucket = std::min(static_cast<std::size_t>(at), kLengthBuckets - 1);
  const double low = edge(bucket), high = edge(bucket + 1);
  return {bucket, std::clamp((tokens - low) / (high - low), 0.0, 1.0)};
}

}  // namespace

Survival::Survival(const std::array<double, kLengthBuckets>& hazards) {
  for (std::size_t i = 0; i < kLengthBuckets; ++i)
    log_[i + 1] = log_[i] + std::log1p(-std::min(hazards[i], kMostHazard));
}

double Survival::log(double tokens) const {
  const auto [bucket, share] = place(tokens);
  return log_[bucket] + share * (log_[bucket + 1] - log_[bucket]);
}

double Survival::horizon(double tokens) const {
  const double least = log(tokens) + kRare;
  const auto first = std::partition_point(log_.begin(), log_.end(),
                                          [least](double value) { return value > least; });
  const auto bucket = std::min<std::ptrdiff_t>(first - log_.begin(), kLengthBuckets);
  return std::max(1.0, edge(static_cast<std::size_t>(bucket)) - tokens);
}

void Forecast::ended(std::int32_t tokens, bool natural) {
  for (std::size_t i = 0; i < kLengthBuckets; ++i) {
    ends_[i] *= 1 - 1 / kRemembered;
    reached_[i] *= 1 - 1 / kRemembered;
  }
  const std::size_t last = place(tokens).bucket;
  for (std::size_t i = 0; i < last; ++i) reached_[i] += 1;
  if (!natural) return;
  reached_[last] += 1;
  ends_[last] += 1;
}

void Forecast::wrote(int model) {
  const int other = 1 - model;
  idle_tokens_[other] += 1;
  if (idle_tokens_[other] < kTokensRemembered) return;
  entries_[other] /= 2;
  idle_tokens_[other] /= 2;
}

Survival Forecast::survival(const std::vector<std::int32_t>& running, double bound) const {
  std::array<double, kLengthBuckets> passed{}, hazards;
  for (const std::int32_t tokens : running) passed[place(tokens).bucket] += 1;
  // A request in a bucket has gone through all buckets before it.
  double further = 0;
  for (std::size_t i = kLengthBuckets; i-- > 0; further += std::exchange(passed[i], further)) {
  }
  const double scale = kPriorScale * bound;
  for (std::size_t i = 0; i < kLengthBuckets; ++i) {
    const double prior = (edge(i + 1) - edge(i)) / (edge(i + 1) + scale);
    hazards[i] = (ends_[i] + kPriorRequests * prior) / (reached_[i] + passed[i] + kPriorRequests);
  }
  return Survival(hazards);
}

}  // namespace steer
