// What follows from a token, and from the answers to questions: boundaries, trials, decisions.
#include <stdexcept>
#include <string>
#include <utility>

#include "schedule/scheduler.h"

namespace steer {

void Scheduler::append(Sequence& sequence, Token token) {
  forecast_.wrote(sequence.active);
  const Outcome outcome = text_.append(sequence, token);
  if (sequence.trial_from >= 0)
    try_on(sequence, outcome);
  else
    conclude(sequence, outcome);
}

// A token on trial: nothing settles, and the decide event comes where the trial ends.
void Scheduler::try_on(Sequence& sequence, Outcome outcome) {
  if (sequence.request.trial_tokens == kWholeAnswer) {
    if (outcome.end == Finish::none && sequence.must_stop_thinking())
      outcome = text_.end_thinking(sequence);
    if (outcome.end == Finish::none) {
      if (outcome.boundary) sequence.open_step(sequence.active);
      return;
    }
  } else if (outcome.end == Finish::none && !outcome.boundary && !sequence.must_stop_thinking() &&
             sequence.length() - sequence.trial_from < sequence.request.trial_tokens) {
    return;
  }
  sequence.trial = outcome;
  sequence.awaits_route = true;
  report(EventKind::decide, sequence);
}

void Scheduler::conclude(Sequence& sequence, Outcome outcome) {
  if (outcome.end == Finish::none && sequence.must_stop_thinking())
    outcome = text_.end_thinking(sequence);
  if (sequence.request.settle_at_once && outcome.end != Finish::stop) text_.settle_open(sequence);
  sequence.note_settled();
  if (outcome.end != Finish::none)
    ask_at_end(sequence, outcome.end);
  else if (outcome.boundary)
    reach_boundary(sequence);
}

// Ends the text, or asks the caller whether the end stands.
void Scheduler::ask_at_end(Sequence& sequence, Finish reason) {
  const int reader = sequence.request.reader;
  if (!sequence.request.ask_at_end || reader == kNobody || reader == sequence.active)
    return end(sequence, reason);
  sequence.closing = reason;
  sequence.active = reader;
  sequence.awaits_route = false;
  sequence.reading = true;
}

// After a decision for the rest, and within a trial, there is no decide event. A reader first
// computes the boundary, or writes its trial, unless that is not needed; the event follows in
// commit().
void Scheduler::reach_boundary(Sequence& sequence) {
  if (sequence.rest_from >= 0 || sequence.trial_from >= 0)
    return sequence.open_step(sequence.active);
  if (sequence.request.reader == kNobody || sequence.unread_from >= 0) {
    sequence.awaits_route = true;
    // A relayed sequence gets its first decide event once it is admitted.
    if (!sequence.request.relay || sequence.phase == Phase::running)
      report(EventKind::decide, sequence);
    return;
  }
  sequence.awaits_route = false;
  activate(sequence, sequence.request.reader);
  if (!sequence.steps.empty()) sequence.usage.decision_wait += sequence.span(sequence.active) - 1;
  if (sequence.request.trial_tokens == 0) {
    sequence.reading = true;
  } else {
    sequence.trial_from = sequence.length();
    sequence.open_step(sequence.active);
  }
}

void Scheduler::activate(Sequence& sequence, int model) {
  // A shadow's entries are its sequence's.
  if (sequence.active != model && !sequence.shadow) forecast_.entered(model);
  sequence.active = model;
}

void Scheduler::route(SequenceId id, int model, bool rest, bool unread) {
  Sequence& sequence = find(id);
  if (model < 0 || model >= kModels) throw std::invalid_argument("model must be 0 or 1");
  if (sequence.shadow || (sequence.request.relay && model == kLarge))
    throw std::invalid_argument("a relayed sequence goes to the large model by cross()");
  check_route(sequence);
  go_on(sequence, model, rest, unread);
}

void Scheduler::check_route(const Sequence& sequence) const {
  if (!sequence.awaits_route || sequence.phase == Phase::finished)
    throw std::logic_error("sequence " + std::to_string(sequence.id) + " does not await a route");
}

void Scheduler::go_on(Sequence& sequence, int model, bool rest, bool unread) {
  turns_.changed();
  if (sequence.closing != Finish::none) return end(sequence, sequence.closing);
  const bool reader_goes_on = model == sequence.request.reader;
  if (sequence.trial_from >= 0) {
    if (reader_goes_on) {
      keep_trial(sequence, rest, unread);
      return settle_ahead(sequence);
    }
    // The reader's rows stay: they belong to the text before the trial. The other model needs a row
    // to sample from.
    const std::int32_t from = sequence.trial_from;
    model == kSmall ? take_back(sequence, from, {from - 1, from})
                    : take_back(sequence, from, {from, from - 1});
  }
  const Token candidate = sequence.candidate;
  const bool keep = candidate >= 0 && reader_goes_on;
  if (keep) {
    count_sampled(sequence, model, RowKind::sampled, sequence.candidate_keys);
    sequence.candidate = -1;
  } else {
    drop_candidate(sequence);
  }
  sequence.awaits_route = sequence.reading = false;
  activate(sequence, model);
  if (rest) sequence.rest_from = sequence.length(), admission_due_ = true;
  if (unread) sequence.unread_from = sequence.length();
  sequence.open_step(sequence.active);
  if (keep) append(sequence, candidate);
  settle_ahead(sequence);
}

void Scheduler::keep_trial(Sequence& sequence, bool rest, bool unread) {
  const std::int32_t from = std::exchange(sequence.trial_from, -1);
  if (rest) sequence.rest_from = from;
  if (unread) sequence.unread_from = from;
  sequence.awaits_route = false;
  conclude(sequence, std::exchange(sequence.trial, Outcome{}));
}

void Scheduler::drop_candidate(Sequence& sequence) {
  if (sequence.candidate < 0) return;
  count_sampled(sequence, sequence.request.reader, RowKind::discarded, sequence.candidate_keys);
  sequence.candidate = -1;
}

}  // namespace steer
