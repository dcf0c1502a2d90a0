// Which sequences may run: new ones, and those that stopped because others needed their KV.
//
// A sequence is admitted, in order, if the arena is likely to hold it and all running sequences
// until they end. The forecast looks at several moments, each a number of further tokens: a
// sequence counts with the probability that it still runs then, times the KV that it holds by then
// on both models. The sum of these means and some standard deviations (guard.h) must stay below the
// arena's size at every moment.
//
// If the forecast was wrong, memory.cpp suspends the newest sequence. Then some slack must be free
// before any is admitted again, so that none is admitted and suspended in turn.
#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <vector>

#include "schedule/scheduler.h"

namespace steer {

namespace {

constexpr double kForFew = 3;        // more standard deviations, divided by the number of sequences
constexpr double kSlack = 1.0 / 16;  // of the arena: must be likely to stay free
constexpr std::size_t kMoments = 32;    // moments that the forecast looks at
constexpr std::int32_t kPatience = 64;  // plans after which admission looks again in any case

}  // namespace

// What the running sequences will hold, in slabs, at some future moments. A moment is a number of
// further tokens that each of them has written by then.
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
    double before = 0;  // a sequence that ends between two moments counts for both
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

  // The highest load of all moments.
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

// What a sequence holds on a model after `tokens` more, if it still runs then.
Scheduler::Holding Scheduler::holding(const Sequence& s, int model, double tokens) const {
  const bool partner = model == kSmall ? s.shadow : shadow_of(s) != nullptr;
  if (partner || s.is_done_with(model)) return {};
  const auto slabs = [&](double rows) {
    const double blocks = std::ceil(rows / config_.block_tokens);
    return blocks / config_.slots[model];
  };
  const double most = slabs(s.length() + tokens);
  if (s.active == model || s.is_verified()) return {most, most, most};
  const double least = slabs(s.computed[model]);
  const double enters = -std::expm1(-forecast_.entry_rate(model) * tokens);
  return {least, least + enters * (most - least), most};
}

// The part of a sequence's KV, held now or soon, that other sequences hold anyway.
double Scheduler::shared_slabs(const Sequence& s) const {
  double slabs = 0;
  for (int model = 0; model < kModels; ++model) {
    if (s.is_done_with(model)) continue;
    const auto& blocks = s.blocks[model];
    std::size_t shared = 0;
    double part = 0;
    for (; shared < blocks.size() && pool().references(model, blocks[shared]) > 1; ++shared)
      part += 1 - 1.0 / pool().references(model, blocks[shared]);
    slabs += part / config_.slots[model];
  }
  if (s.blocks[s.active].empty())
    slabs += static_cast<double>(found_blocks(s, s.active)) / config_.slots[s.active];
  return slabs;
}

// Leading blocks that a sequence without blocks would share with running ones.
std::int32_t Scheduler::found_blocks(const Sequence& s, int model) const {
  if (s.sample > 0 && std::ranges::any_of(running_, [&](const Sequence* other) {
        return other != &s && other->group == s.group && !other->suspended;
      }))
    return (s.prompt_length() - 1) / config_.block_tokens;
  return kv_.live_prefix(model, s.first(s.findable(model)));
}

// Blocks that a sequence lacks to sample its next token.
std::int32_t Scheduler::missing_blocks(const Sequence& sequence, int model) const {
  auto held = static_cast<std::int32_t>(sequence.blocks[model].size());
  if (held == 0) held = found_blocks(sequence, model);
  return std::max(0, kv_.blocks_for(sequence.length() + 1) - held);
}

// The first in the order that waits for no answer. It gets all memory that it lacks, except the KV
// that sequences before it are working on.
Sequence* Scheduler::leader() const {
  const auto found = std::ranges::find_if(
      running_, [](const Sequence* s) { return !s->awaits_route && !s->waits_for_partner(); });
  return found == running_.end() ? nullptr : *found;
}

// The first in the order of those that wait for memory. Suspended sequences keep their places in
// the batch: while it is full, no new one is admitted, whatever its priority.
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
  if (active() <= 0)
    if (Sequence* next = next_in_line()) let_run(*next);
  if (next_in_line() != nullptr && active() < guard_.limit()) admit_while_there_is_room();
}

// Blocks of each model that are left after the next row of all running sequences. KV of suspended
// sequences, and of those that will not go back to a model, counts as free.
std::array<std::int64_t, kModels> Scheduler::room() const {
  std::array<std::int64_t, kModels> room{};
  for (int model = 0; model < kModels; ++model)
    room[model] = pool().available(model) + pool().reclaimable(model);
  for (const Sequence* s : running_) {
    const bool still = stands_still(*s);
    for (int model = 0; model < kModels; ++model)
      if (still || s->is_done_with(model))
        room[model] += static_cast<std::int64_t>(s->blocks[model].size());
    if (!still && !s->waits_for_partner()) room[s->active] -= missing_blocks(*s, s->active);
  }
  return room;
}

// Takes what a sequence and its partner hold, and what its next row needs, out of `room`.
bool Scheduler::fits_now(const Sequence& next, std::array<std::int64_t, kModels>& room) const {
  room[next.active] -= missing_blocks(next, next.active);
  for (int model = 0; model < kModels && next.suspended; ++model)
    for (const Sequence* one : {&next, static_cast<const Sequence*>(partner_of(next))})
      if (one != nullptr) room[model] -= static_cast<std::int64_t>(one->blocks[model].size());
  return room[next.active] >= 0;
}

void Scheduler::admit_while_there_is_room() {
  auto room_left = room();
  Sequence* next = next_in_line();
  if (!fits_now(*next, room_left)) return;
  std::optional<Survival> survival;
  std::optional<Load> load;
  if (!config_.eager_admission) {
    survival.emplace(expected_lengths());
    load.emplace(*this, *survival, horizon(*survival));
    for (const Sequence* s : running_)
      if (!stands_still(*s)) load->add(*s);
  }
  do {
    if (load) {
      load->add(*next);
      if (const Sequence* partner = partner_of(*next)) load->add(*partner);
      if (!has_room_for(*load)) return;
    }
    let_run(*next);
    admission_due_ = true;
    next = next_in_line();
  } while (next != nullptr && active() < guard_.limit() && fits_now(*next, room_left));
}

// How long answers are, from those that ended and the present lengths of the others.
Survival Scheduler::expected_lengths() const {
  std::vector<std::int32_t> lengths;
  double bound = 0;
  for (const Sequence* s : running_) {
    if (s->shadow) continue;
    lengths.push_back(s->generated());
    bound += s->request.max_tokens;
  }
  return forecast_.survival(lengths,
                            lengths.empty() ? config_.max_context : bound / lengths.size());
}

// Tokens after which hardly any of the running sequences still runs.
double Scheduler::horizon(const Survival& survival) const {
  double tokens = survival.horizon(0);
  for (const Sequence* s : running_) tokens = std::max(tokens, survival.horizon(s->generated()));
  return std::min<double>(tokens, config_.max_context);
}

// It is suspended, or it waits for its partner that is.
bool Scheduler::stands_still(const Sequence& sequence) const {
  const Sequence* partner = partner_of(sequence);
  return sequence.suspended || (partner != nullptr && partner->suspended);
}

bool Scheduler::has_room_for(const Load& load) {
  const double left = config_.slabs - 1 - load.peak();
  if (was_short_ && left < kSlack * config_.slabs) return false;
  was_short_ = false;
  return left >= 0;
}

// Starts a queued sequence or resumes a suspended one.
void Scheduler::let_run(Sequence& sequence) {
  if (sequence.suspended) {
    sequence.suspended = false;
    --suspended_;
    return turns_.changed();
  }
  waiting_.erase(std::ranges::find(waiting_, &sequence));
  insert_in_order(running_, &sequence);
  sequence.phase = Phase::running;
  if (sequence.times.started == 0) sequence.times.started = Times::now();
  if (sequence.request.relay && sequence.awaits_route) report(EventKind::decide, sequence);
  ++counters_.admitted;
}

// Stops a sequence until the arena is likely to hold it to its end. It keeps its KV as long as no
// sequence before it needs that. Of a relayed sequence and its shadow the one that works, or is
// about to, stops.
void Scheduler::suspend(Sequence& sequence) {
  Sequence* partner = partner_of(sequence);
  const bool other = partner != nullptr && (sequence.shadow ? !partner->away : sequence.away);
  Sequence& works = other ? *partner : sequence;
  if (works.suspended || works.phase != Phase::running) return;
  was_short_ = admission_due_ = true;
  works.suspended = true;
  ++suspended_;
  ++counters_.suspended;
  for (int model = 0; model < kModels; ++model) drop_ahead(works, model);
}

}  // namespace steer
