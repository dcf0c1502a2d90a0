// Checks that the records of the sequences, the pool, the caches and the plans agree.
#include <algorithm>
#include <stdexcept>
#include <string>

#include "schedule/scheduler.h"

namespace steer {

namespace {

void expect(bool holds, const Sequence& sequence, const char* what) {
  if (!holds) throw std::logic_error("sequence " + std::to_string(sequence.id) + ": " + what);
}

void check_counts(const Sequence& s) {
  expect(s.length() >= s.prompt_length(), s, "the prompt was cut");
  expect(s.settled >= s.prompt_length() && s.settled <= s.length(), s, "settled out of range");
  for (int model = 0; model < kModels; ++model) {
    expect(s.computed[model] >= 0 && s.computed[model] + s.in_flight[model] <= s.known(), s,
           "computed past the end");
    expect(s.highest[model] >= s.computed[model] && s.highest[model] <= s.known(), s,
           "highest below computed");
    expect(s.in_flight[model] > 0 || s.keep_pending[model] < 0, s, "pending without a batch");
    const Ahead& ahead = s.ahead[model];
    if (ahead.rows == 0) continue;
    expect(ahead.first == s.computed[model] + s.in_flight[model], s, "ahead of nothing");
    expect(ahead.first + ahead.rows <= s.known() + 1, s, "planned past the next token");
    expect(!s.runnable(model), s, "rows that are planned could be planned again");
  }
  expect(s.busy() || (s.end_pending == Finish::none && s.truncate_pending < 0), s,
         "pending without a batch");
  expect(s.trial_from < 0 || (s.settled <= s.trial_from && s.trial_from <= s.length()), s,
         "a trial was settled");
  expect(s.candidate < 0 || s.awaits_route, s, "a candidate without a question");
  if (s.phase == Phase::running && !s.awaits_route && !s.pending())
    expect(s.computed[s.active] < (s.active == kSmall ? s.known() : s.length()), s,
           "no row to sample from");
  expect(!s.away || (s.request.relay && !s.awaits_route && !s.busy()), s, "away, and yet it moves");
  for (std::size_t i = 1; i < s.steps.size(); ++i)
    expect(s.steps[i - 1].start < s.steps[i].start, s, "steps out of order");
}

void check_round(const Sequence& s) {
  const Round& round = s.round;
  expect(static_cast<std::int32_t>(s.draft.size()) <= round.wanted &&
             round.wanted <= s.request.draft_tokens,
         s, "more guesses than wanted");
  if (round.wanted == 0) return expect(!round.open, s, "guesses for nothing");
  expect(s.has_guesser() || !round.open, s, "guesses that were given up");
  expect(!round.open || round.drawn, s, "guesses that are there are written");
  const int writer = s.request.verified && round.open ? kSmall : kLarge;
  expect(s.phase == Phase::running && s.active == writer && !s.awaits_route && !s.reading &&
             s.trial_from < 0,
         s, "guesses at what the large model does not write");
  expect(s.known() < s.prompt_length() + s.request.max_tokens + s.request.verified, s,
         "guesses past the longest text");
  expect(s.ahead[kLarge].rows == 0, s, "a bet after guesses");
  const bool draws = s.computed[kLarge] + s.in_flight[kLarge] >= s.length();
  expect(!round.open || !draws, s, "the large model draws while guesses are written");
  expect(round.open || s.ahead[kSmall].rows == 0, s, "guesses after the last one");
  expect(round.open || s.in_flight[kSmall] == 0 ||
             s.computed[kSmall] + s.in_flight[kSmall] < s.settled,
         s, "guesses are written while they are verified");
}

}  // namespace

// Rows in flight, or planned after those, are in exactly one place of one plan.
void Scheduler::check_flights(const Sequence& s) const {
  const auto stands = [&s](const Plan& plan, std::int32_t row) {
    return plan.in_flight && row < plan.sequences && plan.members[row] == &s;
  };
  for (int model = 0; model < kModels; ++model) {
    const Ahead& ahead = s.ahead[model];
    const bool flies = s.in_flight[model] > 0;
    std::int64_t places = 0;
    for (const Plan& plan : lanes_[model])
      if (plan.in_flight) places += std::ranges::count(plan.members, &s);
    expect(places == flies + (ahead.rows > 0), s, "planned twice or nowhere");
    expect(!flies || std::ranges::any_of(lanes_[model],
                                         [&](const Plan& p) { return stands(p, s.row[model]); }),
           s, "not where it is in flight");
    if (ahead.rows == 0) continue;
    const Plan& plan = lanes_[model][ahead.plan];
    expect(stands(plan, ahead.row), s, "not where it was planned ahead");
    expect((&plan == oldest(model)) == !flies, s, "not behind the batch in flight");
  }
}

// Each host slot is held by exactly the copies in flight.
void Scheduler::check_host() const {
  std::vector<std::int32_t> held(host().total());
  for (const auto& plans : lanes_)
    for (const Plan& plan : plans) {
      if (!plan.in_flight && plan.sequences == 0 && plan.saved + plan.restored > 0)
        throw std::logic_error("copies without a tick");
      if (!plan.in_flight) continue;
      for (std::int32_t i = 0; i < plan.saved; ++i) ++held[plan.saves[2 * i + 1]];
      for (std::int32_t i = 0; i < plan.restored; ++i) ++held[plan.restores[2 * i]];
    }
  for (std::int32_t slot = 0; slot < host().total(); ++slot)
    if (host().holders(slot) != held[slot])
      throw std::logic_error("holders of host slot " + std::to_string(slot) + " are wrong");
}

void Scheduler::check_integrity() const {
  kv_.check_integrity();
  check_host();
  std::array<std::unordered_map<BlockId, std::int32_t>, kModels> held;
  std::int64_t bets = 0;
  std::int32_t shadows = 0, suspended = 0, speculating = 0;
  for (const auto& [id, owned] : sequences_) {
    const Sequence& s = *owned;
    bets += (s.ahead[kSmall].rows > 0) + (s.ahead[kLarge].rows > 0);
    speculating += s.request.draft_tokens > 0 && s.phase != Phase::finished;
    check_counts(s);
    check_round(s);
    check_flights(s);
    const Sequence* shadow = shadow_of(s);
    expect(!s.away || shadow != nullptr, s, "away without a shadow");
    expect(shadow == nullptr || (shadow->shadow && shadow->partner == s.id), s,
           "its shadow is another's");
    expect(shadow == nullptr || s.phase != Phase::finished || shadow->phase == Phase::finished ||
               shadow->end_pending != Finish::none,
           s, "its shadow outlives it");
    shadows += s.shadow && s.phase == Phase::running;
    suspended += s.suspended;
    expect(!s.suspended || s.phase == Phase::running, s, "suspended and not running");
    expect(!s.suspended || shadow == nullptr || !shadow->suspended, s, "suspended twice");
    const bool listed = std::count(running_.begin(), running_.end(), &s) == 1;
    const bool queued = std::count(waiting_.begin(), waiting_.end(), &s) == 1;
    expect(listed == (s.phase == Phase::running), s, "not listed as running");
    expect(queued == (s.phase == Phase::waiting), s, "not listed as waiting");
    for (int model = 0; model < kModels; ++model) {
      const auto rows = s.computed[model] + s.in_flight[model] + s.ahead[model].rows;
      expect(s.blocks[model].size() == static_cast<std::size_t>(kv_.blocks_for(rows)), s,
             "blocks do not match rows");
      expect(s.phase == Phase::running || s.blocks[model].empty(), s, "holds KV while not running");
      expect(static_cast<std::int32_t>(s.nodes[model].size()) <=
                 s.computed[model] / config_.block_tokens,
             s, "knows blocks that are not full");
      for (const BlockId block : s.blocks[model]) ++held[model][block];
    }
  }
  for (int model = 0; model < kModels; ++model) {
    for (const Plan& plan : lanes_[model])
      for (std::int32_t copy = 0; plan.in_flight && copy < plan.copied; ++copy)
        ++held[model][plan.copies[2 * copy]];
    for (const auto& [block, count] : held[model])
      if (pool().references(model, block) != count)
        throw std::logic_error("references of block " + std::to_string(block) + " are wrong");
    if (static_cast<std::int64_t>(held[model].size()) != pool().live(model))
      throw std::logic_error("a live block belongs to no sequence");
  }
  if (shadows != shadows_) throw std::logic_error("the shadows are miscounted");
  if (suspended != suspended_) throw std::logic_error("the suspended are miscounted");
  if (speculating != speculating_) throw std::logic_error("those that draft are miscounted");
  if (bets != bets_) throw std::logic_error("the spans planned ahead are miscounted");
  const auto in_order = [](const Sequence* a, const Sequence* b) { return goes_before(*a, *b); };
  if (!std::is_sorted(running_.begin(), running_.end(), in_order) ||
      !std::is_sorted(waiting_.begin(), waiting_.end(), in_order))
    throw std::logic_error("a list is out of order");
}

}  // namespace steer
