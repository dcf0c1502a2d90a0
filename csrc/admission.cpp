// Who may run: new sequences, and those that gave up their KV for others.
//
// A sequence comes in, in order, if the arena is likely to hold all that run until they end, and it
// with them. What is likely is a forecast: over the next so many tokens of each, its share that
// still runs then, times what it holds by then on both models. The mean of that over all of them,
// and twice its standard deviation on top, must stay below the arena at every moment looked at.
//
// Where the forecast was wrong, memory.cpp suspends the newest. Then there must be some more room
// before anybody comes in again, so that nobody comes and goes.
#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "scheduler.h"

namespace steer {

namespace {

constexpr double kForFew = 3;        // standard deviations more, divided by the number of sequences
constexpr double kSlack = 1.0 / 16;  // of the arena, free again after somebody was suspended
constexpr std::size_t kMoments = 32;    // that are looked at
constexpr std::int32_t kPatience = 64;  // plans after which it is looked again, whatever happened

}  // namespace

// What the running sequences will hold, in slabs, at some moments to come. A moment is a number of
// tokens that each of them has written by then.
class Scheduler::Load {
 public:
  Load(const Scheduler& core, const Survival& survival, double horizon)
      : core_(core), survival_(survival) {
    for (std::size_t i = 0; i < kMoments; ++i) {
      const double share = static_cast<double>(i) / (kMoments - 1);
      moments_[i].tokens = horizon * share * share;
    }
  }

  void add(const Sequence& sequence) {
    ++sequences_;
    const double now = survival_.log(sequence.generated());
    const double left = sequence.request.max_tokens - sequence.generated();
    const double shared = core_.shared_slabs(sequence);
    double before = 0;  // who ends between two moments counts for both
    for (Moment& moment : moments_) {
      if (before > left) break;
      const double runs = std::exp(survival_.log(sequence.generated() + before) - now);
      const double tokens = std::min(moment.tokens, left);
      double mean = -shared, most = -shared, variance = 0;
      for (int model = 0; model < kModels; ++model) {
        const Holding holding = core_.holding(sequence, model, tokens);
        mean += holding.likely;
        most += holding.most;
        variance += (holding.most - holding.likely) * (holding.likely - holding.least);
      }
      moment.mean += runs * mean;
      moment.most += most;
      moment.variance += runs * (variance + (1 - runs) * mean * mean);
      before = moment.tokens;
    }
  }

  // The most that it comes to.
  double peak() const {
    const double deviations = core_.guard_.caution() + kForFew / sequences_;
    double peak = 0;
    for (const Moment& moment : moments_)
      peak = std::max(peak,
                      std::min(moment.most, moment.mean + deviations * std::sqrt(moment.variance)));
    return peak;
  }

 private:
  struct Moment {
    double tokens = 0, mean = 0, most = 0, variance = 0;
  };

  const Scheduler& core_;
  const Survival& survival_;
  std::array<Moment, kMoments> moments_{};
  double sequences_ = 0;
};

// What a sequence holds on a model once it has written so many tokens more, if it still runs then.
Scheduler::Holding Scheduler::holding(const Sequence& s, int model, double tokens) const {
  const bool partner = model == kSmall ? s.shadow() : shadow_of(s) != nullptr;
  if (partner || s.is_done_with(model)) return {};
  const auto slabs = [&](double rows) {
    const double blocks = std::ceil(rows / config_.block_tokens);
    return blocks / config_.slots[model];
  };
  const double most = slabs(s.length() + tokens);
  if (s.active == model) return {most, most, most};
  const double least = slabs(s.computed[model]);
  const double enters = -std::expm1(-forecast_.entry_rate(model) * tokens);
  return {least, least + enters * (most - least), most};
}

// Of what it holds, or will, what others hold anyway.
double Scheduler::shared_slabs(const Sequence& s) const {
  double slabs = 0;
  for (int model = 0; model < kModels; ++model) {
    const auto& blocks = s.blocks[model];
    std::size_t shared = 0;
    double part = 0;
    for (; shared < blocks.size() && pool_.references(model, blocks[shared]) > 1; ++shared)
      part += 1 - 1.0 / pool_.references(model, blocks[shared]);
    slabs += part / config_.slots[model];
  }
  if (s.blocks[s.active].empty())
    slabs += static_cast<double>(found_blocks(s, s.active)) / config_.slots[s.active];
  return slabs;
}

// Leading blocks of a sequence that holds none, that others who run hold.
std::int32_t Scheduler::found_blocks(const Sequence& s, int model) const {
  if (s.sample > 0 && std::ranges::any_of(running_, [&](const Sequence* other) {
        return other != &s && other->group == s.group && !other->suspended;
      }))
    return (s.prompt_length() - 1) / config_.block_tokens;
  if (!config_.prefix_cache) return 0;
  const std::int32_t size = config_.block_tokens;
  std::int32_t blocks = 0;
  for (auto parent = PrefixCache::kRoot; (blocks + 1) * size <= s.findable(model); ++blocks) {
    const auto hit = cache_.find(model, parent,
                                 {s.tokens.data() + blocks * size, static_cast<std::size_t>(size)});
    if (!hit || pool_.references(model, hit->block) == BlockPool::kCached) break;
    parent = hit->node;
  }
  return blocks;
}

// Blocks that a sequence lacks to sample its next token.
std::int32_t Scheduler::missing_blocks(const Sequence& sequence, int model) const {
  auto held = static_cast<std::int32_t>(sequence.blocks[model].size());
  if (held == 0) held = found_blocks(sequence, model);
  return std::max(0, blocks_for(sequence.length() + 1) - held);
}

// The first in the order that could go on: what it lacks it gets, whoever has it.
Sequence* Scheduler::leader() const {
  const auto found = std::ranges::find_if(
      running_, [](const Sequence* s) { return !s->awaits_route && !s->waits_for_partner(); });
  return found == running_.end() ? nullptr : *found;
}

// The first in the order of those that wait for room.
Sequence* Scheduler::next_in_line() const {
  const auto suspended =
      suspended_ == 0 ? running_.end() : std::ranges::find_if(running_, &Sequence::suspended);
  Sequence* back = suspended == running_.end() ? nullptr : *suspended;
  const bool full = static_cast<std::int32_t>(running_.size()) - shadows_ >= config_.max_sequences;
  if (waiting_.empty() || full) return back;
  return back != nullptr && goes_before(*back, *waiting_.front()) ? back : waiting_.front();
}

std::int32_t Scheduler::active() const {
  return static_cast<std::int32_t>(running_.size()) - shadows_ - suspended_;
}

void Scheduler::admit() {
  if (waiting_.empty() && suspended_ == 0) return;
  if (Sequence* first = leader(); first && first->suspended) let_run(*first);
  if (active() > 0 && !admission_due_ && ++plans_since_look_ < kPatience) return;
  admission_due_ = false;
  plans_since_look_ = 0;
  if (active() == 0)
    if (Sequence* next = next_in_line()) let_run(*next);
  if (next_in_line() != nullptr) admit_while_there_is_room();
}

void Scheduler::admit_while_there_is_room() {
  std::vector<std::int32_t> lengths;
  std::array<std::int64_t, kModels> room{};
  double bound = 0;
  for (int model = 0; model < kModels; ++model)
    room[model] = pool_.available(model) + pool_.reclaimable(model);
  for (const Sequence* s : running_) {
    for (int model = 0; model < kModels; ++model)
      if (s->suspended || s->is_done_with(model))
        room[model] += static_cast<std::int64_t>(s->blocks[model].size());
    if (s->suspended) continue;
    if (!s->waits_for_partner()) room[s->active] -= missing_blocks(*s, s->active);
    if (s->shadow()) continue;
    lengths.push_back(s->generated());
    bound += s->request.max_tokens;
  }
  const Survival survival = forecast_.survival(lengths, bound / lengths.size());
  double horizon = survival.horizon(0);
  for (const std::int32_t length : lengths) horizon = std::max(horizon, survival.horizon(length));
  Load load(*this, survival, std::min<double>(horizon, config_.max_context));
  for (const Sequence* s : running_)
    if (!s->suspended) load.add(*s);
  while (Sequence* next = next_in_line()) {
    if (active() >= guard_.limit()) return;
    room[next->active] -= missing_blocks(*next, next->active);
    for (int model = 0; model < kModels; ++model)
      if (next->suspended) room[model] -= static_cast<std::int64_t>(next->blocks[model].size());
    load.add(*next);
    if (room[next->active] < 0 || !has_room_for(load)) return;
    let_run(*next);
    admission_due_ = true;
  }
}

bool Scheduler::has_room_for(const Load& load) {
  if (config_.eager_admission) return true;
  const double left = config_.slabs - 1 - load.peak();
  if (was_short_ && left < kSlack * config_.slabs) return false;
  was_short_ = false;
  return left >= 0;
}

// From the queue, or from where it waited without KV.
void Scheduler::let_run(Sequence& sequence) {
  if (sequence.suspended) {
    sequence.suspended = false;
    --suspended_;
    return turns_.changed();
  }
  waiting_.erase(std::ranges::find(waiting_, &sequence));
  insert_in_order(running_, &sequence);
  sequence.phase = Phase::running;
  if (sequence.request.relay && sequence.awaits_route)
    events_.push_back({EventKind::decide, sequence.id, -1});
  ++counters_.admitted;
}

// Stops a sequence until there is room for it to its end. It keeps its KV as long as nobody before
// it needs that. Of a relayed sequence and its shadow the one that works waits.
void Scheduler::suspend(Sequence& sequence) {
  was_short_ = admission_due_ = true;
  Sequence* partner = partner_of(sequence);
  Sequence& works = sequence.waits_for_partner() && partner != nullptr ? *partner : sequence;
  if (works.suspended || works.waits_for_partner() || works.phase != Phase::running) return;
  works.suspended = true;
  ++suspended_;
  ++counters_.suspended;
  for (int model = 0; model < kModels; ++model) drop_ahead(works, model);
}

}  // namespace steer
