// A tick of a lane is planned. Its commit: retire.cpp.
#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

#include "schedule/scheduler.h"

namespace steer {

// Decoding sequences come first in the row budget and prefills share the rest, but memory is handed
// out strictly in order.
std::int32_t Scheduler::plan(int lane, bool ahead) {
  const Plan* before = oldest(lane);
  if (before != nullptr && (!ahead || std::ranges::all_of(lanes_[lane], &Plan::in_flight)))
    throw std::logic_error("lane " + std::to_string(lane) + " has a plan in flight: commit first");
  ahead = before != nullptr;
  admit();
  open_rounds();
  Plan& plan = filling(lane);
  plan.clear(clock_[lane]);
  if (holds(lane, ahead)) return 0;
  add_spans(lane, ahead);
  if (!plan.short_of_memory) kv_.open_slabs(lane);
  const bool guesses = lane == kSmall && speculating_ > 0;
  if (guesses) add_drafts(ahead);
  if ((config_.background[lane] > 0 || guesses) && !plan.short_of_memory)
    for (Sequence* sequence : running_) read_along(lane, *sequence);
  // After a batch in flight an empty plan does not mean that the lane has nothing to do.
  if (config_.lanes.policy != LanePolicy::latency && (plan.sequences > 0 || !ahead))
    turns_.planned(lane, plan.sequences, {runnable(kSmall), runnable(kLarge)});
  if (plan.sequences == 0) return 0;
  ++clock_[lane];
  plan.in_flight = true;
  for (Sequence* sequence : plan.members) sequence->last_tick[lane] = plan.tick;
  ++counters_.ticks[lane];
  return plan.sequences;
}

void Scheduler::add_spans(int lane, bool ahead) {
  Plan& plan = filling(lane);
  std::int32_t prefill = config_.max_tick_tokens;
  std::int32_t kept = 0;  // of these, not for guesses: a prefill goes on, whatever else does
  const bool drafts = speculating_ > 0;
  for (Sequence* sequence : running_) {
    if (drafts && sequence->drafts_aside(lane)) continue;  // see add_drafts()
    if (sequence->runnable(lane)) {
      reuse_prefix(*sequence, lane, sequence->findable(lane));
      if (sequence->writing_span(lane) == 1)
        --prefill;
      else
        kept = config_.block_tokens;
    } else if (ahead && goes_ahead(*sequence, lane)) {
      prefill -= sequence->span_ahead(lane) == 1;
    }
  }
  for (Sequence* sequence : running_) {
    if (drafts && sequence->drafts_aside(lane)) continue;
    const bool follows = ahead && goes_ahead(*sequence, lane);
    if (!follows && (!sequence->runnable(lane) || follows_sample(*sequence, lane))) continue;
    const std::int32_t span = follows ? sequence->span_ahead(lane) : sequence->writing_span(lane);
    const bool decodes = span == 1;
    std::int32_t wanted = decodes ? 1 : std::min(span, prefill);
    if (drafts && !follows && !sequence->round.open) {
      const std::int32_t rows = decodes ? prefill - kept : prefill - wanted;
      const std::int32_t left = std::min(rows, most_guesses() - (plan.draws - plan.sequences));
      wanted += std::clamp(left, 0, sequence->verifying_rows());
    }
    const std::int32_t before = plan.rows;
    if (wanted > 0)
      follows ? add_ahead(plan, lane, *sequence, wanted) : add_span(plan, lane, *sequence, wanted);
    if (plan.rows == before) continue;
    prefill -= plan.rows - before - decodes;
    if (!decodes) kept = 0;
  }
}

const Plan* Scheduler::oldest(int lane) const {
  const Plan* found = nullptr;
  for (const Plan& plan : lanes_.at(lane))
    if (plan.in_flight && (found == nullptr || plan.tick < found->tick)) found = &plan;
  return found;
}

// Sequences that could be in a plan of the lane; with `ahead` also those that are in flight.
std::int32_t Scheduler::runnable(int lane, bool ahead) const {
  return static_cast<std::int32_t>(std::count_if(
      running_.begin(), running_.end(),
      [&](const Sequence* s) { return s->runnable(lane) || (ahead && goes_ahead(*s, lane)); }));
}

// Does the lane policy put this plan off?
bool Scheduler::holds(int lane, bool ahead) {
  if (config_.lanes.policy == LanePolicy::latency) return false;
  const bool held = turns_.holds(
      lane, oldest(1 - lane) != nullptr, active(),
      {runnable(kSmall, ahead && lane == kSmall), runnable(kLarge, ahead && lane == kLarge)});
  counters_.held[lane] += held;
  return held;
}

void Scheduler::add_span(Plan& plan, int lane, Sequence& sequence, std::int32_t wanted) {
  wanted = std::min(wanted, config_.max_tick_tokens - plan.rows);
  if (wanted <= 0) return;
  // While a first token is being guessed there is no row after the prompt to plan.
  if (sequence.samples > 1 && !(lane == kLarge && sequence.round.open && sequence.generated() == 0))
    share_prompt(sequence, lane);
  if (lane == kLarge && config_.host_blocks > 0) restore(sequence);
  const std::int32_t span = sequence.writing_span(lane);
  std::int32_t rows = reserve(sequence, lane, std::min(wanted, span));
  if (rows == span && !sequence.round.open && sequence.guesses() > 0)
    rows += reserve_draft(sequence, wanted - rows);
  if (rows > 0) plan.add(sequence, lane, rows, config_.block_tokens);
}

// Reads along with the other model, with rows and blocks that no other sequence needs: nothing is
// evicted for it, and KV that was taken away once is not computed again. One settled token is left
// unread, so that there is a row to sample from whatever is taken back.
void Scheduler::read_along(int lane, Sequence& sequence) {
  Plan& plan = filling(lane);
  if (sequence.request.relay || sequence.suspended || sequence.active == lane ||
      sequence.is_verified() || sequence.in_flight[lane] > 0 || sequence.ahead[lane].rows > 0 ||
      sequence.pending())
    return;
  // A model that could guess, but lacks too much.
  const bool lags = lane == kSmall && sequence.has_guesser() && sequence.span(lane) > kMostBehind;
  const bool unread = sequence.rest_from >= 0 ||
                      (lane == kSmall && sequence.request.reader != kSmall) ||
                      config_.background[lane] == 0;
  if (!lags && unread) return;
  if (sequence.settled - 1 - sequence.computed[lane] < (lags ? 1 : config_.background[lane]))
    return;
  reuse_prefix(sequence, lane, std::min(sequence.settled - 1, sequence.findable(lane)));
  const std::int32_t first = sequence.computed[lane];
  if (first < sequence.highest[lane]) return;
  std::int32_t rows = std::min(sequence.settled - 1 - first, config_.max_tick_tokens - plan.rows);
  rows = kv_.extend(sequence, lane, first, rows, [&] { return kv_.free_block(lane); });
  if (rows <= 0) return;
  counters_.background[lane] += rows;
  plan.add(sequence, lane, rows, config_.block_tokens);
}

}  // namespace steer
