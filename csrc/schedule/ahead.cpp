// Planning one tick ahead: the host plans a lane's next batch while the last one is in flight, and
// decides one tick late.
//
// Rows planned after a batch in flight are a bet that the sequence goes on unchanged: with more of
// the known text, or with the token that is about to be drawn. When that batch has retired the rows
// are one of
//
//   promoted   a plan made now would hold exactly them: from here on they are rows in flight
//   undecided  a decision is open and may yet promote them: until it is made, or until their own
//              batch retires
//   void       anything else: their results are ignored
//
// Nothing waits for rows that are not promoted: a sequence ends, is cut or handed over as if they
// were not there. A void row writes after everything that was computed when it was planned, into a
// block that no other sequence holds and the prefix cache does not know, and before anything that
// the lane plans later. The other lane gets the block only after the fence.
#include <algorithm>
#include <utility>

#include "schedule/scheduler.h"

namespace steer {

// Is the sequence in flight on this lane, and may a plan hold what follows? Not if it is known that
// the token in flight ends the text, or that forced tokens come after it.
bool Scheduler::goes_ahead(const Sequence& sequence, int lane) const {
  const Request& request = sequence.request;
  const bool drafts = sequence.drafts(lane);
  if (sequence.phase != Phase::running || sequence.in_flight[lane] == 0 ||
      (sequence.active != lane && !drafts) || sequence.awaits_route || sequence.suspended ||
      sequence.pending() || sequence.keep_pending[lane] >= 0)
    return false;
  // What follows the large model's draws is not known: there are several, or a round comes next.
  if (lane == kLarge && (sequence.speculates() || sequence.round.wanted > 0)) return false;
  if (sequence.computed[lane] + sequence.in_flight[lane] < sequence.known()) return true;
  if (drafts) {
    return request.ahead && sequence.guesses() + 1 < sequence.round.wanted;
  }
  return request.ahead && sequence.generated() + 1 < request.max_tokens &&
         !sequence.must_stop_thinking(1);
}

// A bet takes no memory from other sequences. Once a plan is short of memory it gets no more bets:
// sequences left out will have retired when the next plan looks for blocks to take.
void Scheduler::add_ahead(Plan& plan, int lane, Sequence& sequence, std::int32_t wanted) {
  if (plan.short_of_memory) return;
  const std::int32_t first = sequence.computed[lane] + sequence.in_flight[lane];
  wanted = std::min(wanted, config_.max_tick_tokens - plan.rows);
  const std::int32_t rows = kv_.extend(sequence, lane, first, wanted, [&] {
    const auto block = kv_.take_block(lane, plan);
    plan.short_of_memory = !block && !sequence.drafts_aside(lane);  // guesses are not missed
    return block;
  });
  if (rows <= 0) return;
  const auto buffer = static_cast<std::int32_t>(&plan - lanes_[lane].data());
  sequence.ahead[lane] = {rows, first, sequence.attempt, plan.sequences, buffer};
  plan.add(sequence, lane, rows, config_.block_tokens);
  counters_.ahead[lane] += rows;
  ++bets_;
}

// To be called when the batch before these rows has retired, and after each decision.
void Scheduler::settle_ahead(Sequence& sequence, int lane) {
  Ahead& ahead = sequence.ahead[lane];
  if (ahead.rows == 0 || sequence.in_flight[lane] > 0) return;
  const Plan& plan = lanes_[lane][ahead.plan];
  const std::int32_t last = ahead.first + ahead.rows, known = sequence.known();
  const bool follows = plan.in_flight && !sequence.pending() &&
                       sequence.computed[lane] == ahead.first && sequence.attempt == ahead.attempt;
  if (follows && sequence.runnable(lane) && last <= known &&
      plan.samples[ahead.row] == (last == known)) {
    sequence.row[lane] = ahead.row;
    sequence.in_flight[lane] = std::exchange(ahead.rows, 0);
    --bets_;
    return;
  }
  // Either the candidate's row, or that of the last token, if this lane writes on after it.
  const bool candidate = sequence.candidate >= 0 && sequence.request.reader == lane;
  const bool asked = sequence.awaits_route || (sequence.reading && sequence.active != lane);
  if (!follows || !asked || last != known + candidate) drop_ahead(sequence, lane);
}

// Makes the rows planned ahead void.
void Scheduler::drop_ahead(Sequence& sequence, int lane) {
  Ahead& ahead = sequence.ahead[lane];
  if (ahead.rows == 0) return;
  const std::int32_t rows = std::exchange(ahead.rows, 0);
  --bets_;
  counters_.voided[lane] += rows;
  sequence.usage.rows[lane][static_cast<int>(RowKind::discarded)].add(ahead.first,
                                                                      ahead.first + rows);
  lanes_[lane][ahead.plan].members[ahead.row] = nullptr;
  kv_.keep_blocks(sequence, lane, sequence.computed[lane] + sequence.in_flight[lane]);
}

}  // namespace steer
