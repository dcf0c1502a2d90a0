// A sequence from add() to forget().
#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

#include "schedule/scheduler.h"

namespace steer {

namespace {

void require(bool holds, const std::string& what) {
  if (!holds) throw std::invalid_argument(what);
}

SchedulerConfig checked(SchedulerConfig config) {
  require(config.block_tokens > 0, "block_tokens must be at least 1");
  require(config.max_context > 1, "max_context must be at least 2");
  require(config.max_sequences > 0, "max_sequences must be at least 1");
  require(config.background[kSmall] >= 0 && config.background[kLarge] >= 0,
          "background must be 0 (off) or more");
  // A tick serves every decoding sequence and still advances one prefill: nothing starves.
  require(config.max_tick_tokens > config.max_sequences,
          "max_tick_tokens must be greater than max_sequences");
  require(config.max_drawn_rows == 0 || config.max_drawn_rows >= config.max_sequences,
          "max_drawn_rows must be 0 (as many as rows) or at least max_sequences");
  require(config.host_blocks == 0 || config.prefix_cache,
          "host_blocks needs prefix_cache: what host memory keeps is found through it");
  check(config.lanes);
  return config;
}

}  // namespace

Scheduler::Scheduler(const SchedulerConfig& config, const std::vector<std::string>& delimiters,
                     std::vector<std::string> token_bytes,
                     std::vector<std::string> large_token_bytes)
    : config_(checked(config)),
      text_(delimiters, std::move(token_bytes), std::move(large_token_bytes)),
      kv_(config.slabs, config.slots, config.block_tokens, config.prefix_cache, config.host_blocks),
      turns_(config.lanes),
      guard_(config.max_sequences) {
  for (auto& plans : lanes_)
    for (int i = 0; i < kDepth; ++i)
      plans.emplace_back(config.max_tick_tokens, config.max_sequences,
                         kv_.blocks_for(config.max_context), config.host_blocks);
}

void Scheduler::check_request(const Request& request, std::int32_t samples) const {
  const auto number = [](std::int64_t value) { return std::to_string(value); };
  const auto total = static_cast<std::int64_t>(request.prompt.size()) + request.max_tokens;
  require(!request.prompt.empty(), "the prompt is empty");
  require(request.max_tokens >= 1, "max_tokens must be at least 1");
  require(request.min_tokens >= 0 && request.max_step_tokens >= 0,
          "min_tokens and max_step_tokens must be 0 or more");
  require(request.max_think_tokens >= 0, "max_think_tokens must be 0 or more");
  require(request.max_think_tokens == 0 || !request.think_end.empty(),
          "max_think_tokens needs the tokens that end thinking");
  require(request.max_repeats == 0 || request.max_repeats >= 2,
          "max_repeats must be 0 (off) or at least 2");
  require(request.reader >= kNobody && request.reader < kModels, "reader must be -1, 0 or 1");
  require(request.scored >= kNobody && request.scored < kModels, "scored must be -1, 0 or 1");
  require(request.trial_tokens >= kWholeAnswer && request.trial_tokens <= request.max_tokens,
          "a trial must be -1 (the whole answer) or 0 to max_tokens (" +
              number(request.max_tokens) + ") tokens long, got " + number(request.trial_tokens));
  require(request.trial_tokens == 0 || request.reader != kNobody, "a trial needs a reader");
  require(samples >= 1, "samples must be at least 1");
  require(request.draft_tokens >= 0 && request.draft_tokens <= kMostDrafts,
          "draft_tokens must be 0 (off) to " + number(kMostDrafts) + ", got " +
              number(request.draft_tokens));
  require(
      request.draft_tokens == 0 || !request.relay || request.draft_source == DraftSource::lookup,
      "the small model's tokens are not the large model's: it cannot guess these in a relayed "
      "request; set draft_source to lookup, or draft_tokens to 0");
  require(!request.verified || (request.draft_tokens > 0 && !request.relay &&
                                request.draft_source == DraftSource::small),
          "the small model guesses what the large one verifies: set draft_tokens to 1 or more, "
          "draft_source to small, and relay to false");
  require(!request.verified || request.reader != kLarge,
          "the large model verifies what it reads here: it cannot be the reader as well");
  require(config_.max_waiting == 0 || samples <= config_.max_waiting,
          number(samples) + " samples can never be queued at once: the queue holds " +
              number(config_.max_waiting));
  require(total <= config_.max_context,
          "prompt of " + number(static_cast<std::int64_t>(request.prompt.size())) +
              " tokens and max_tokens " + number(request.max_tokens) + " exceed the context of " +
              number(config_.max_context) + " tokens");
  require(total <= longest(), "prompt and max_tokens need KV for " + number(total) +
                                  " tokens, the arena holds " + number(longest()));
  require(!request.relay || (samples == 1 && request.settle_at_once && !request.ask_at_end &&
                             request.min_tokens == 0 && request.reader != kLarge),
          "a relayed request is one sample that settles at once, without min_tokens, and not read "
          "by the large model");
}

std::int64_t Scheduler::longest() const {
  const std::int64_t fits = static_cast<std::int64_t>(config_.slabs) *
                            std::min(config_.slots[kSmall], config_.slots[kLarge]) *
                            config_.block_tokens;
  return std::min<std::int64_t>(fits, config_.max_context);
}

SequenceId Scheduler::add(Request request, std::int32_t samples) {
  check_request(request, samples);
  const TextState text = text_.begin(std::move(request));
  const auto queued = static_cast<std::int64_t>(waiting_.size()) + samples;
  if (config_.max_waiting > 0 && queued > config_.max_waiting)
    throw std::overflow_error("the queue is full: " + std::to_string(waiting_.size()) +
                              " requests wait, it holds " + std::to_string(config_.max_waiting));
  turns_.changed();
  admission_due_ = true;
  speculating_ += text.request.draft_tokens > 0 ? samples : 0;
  const SequenceId first = next_id_;
  for (std::int32_t sample = 0; sample < samples; ++sample) {
    auto sequence = std::make_unique<Sequence>(text);
    sequence->id = next_id_++;
    sequence->group = first;
    sequence->samples = samples;
    sequence->sample = sample;
    sequence->times.queued = Times::now();
    sequence->tokens.reserve(text.request.prompt.size() + text.request.max_tokens);
    insert_in_order(waiting_, sequence.get());
    reach_boundary(*sequence);
    sequences_.emplace(sequence->id, std::move(sequence));
  }
  return first;
}

Sequence& Scheduler::find(SequenceId id) {
  const auto found = sequences_.find(id);
  if (found == sequences_.end()) throw std::out_of_range("unknown sequence " + std::to_string(id));
  return *found->second;
}

const Sequence& Scheduler::sequence(SequenceId id) const {
  return const_cast<Scheduler*>(this)->find(id);
}

// Ends a sequence, now or when its batch in flight has retired. The first reason counts.
void Scheduler::end(Sequence& sequence, Finish reason) {
  if (sequence.end_pending == Finish::none) sequence.end_pending = reason;
  if (!sequence.busy()) return finish(sequence, std::exchange(sequence.end_pending, Finish::none));
  drop_candidate(sequence);
  sequence.awaits_route = sequence.reading = false;
}

void Scheduler::finish(Sequence& sequence, Finish reason) {
  drop_candidate(sequence);
  sequence.drop_round();
  speculating_ -= sequence.request.draft_tokens > 0;
  for (int model = 0; model < kModels; ++model) {
    drop_ahead(sequence, model);
    cut_rows(sequence, model, sequence.length());
    kv_.keep_rows(sequence, model, 0);
  }
  if (!sequence.shadow && sequence.phase == Phase::running)
    forecast_.ended(sequence.generated(), reason == Finish::stop || reason == Finish::repetition);
  suspended_ -= std::exchange(sequence.suspended, false);
  admission_due_ = true;
  shadows_ -= sequence.shadow;
  if (sequence.phase == Phase::running)
    running_.erase(std::find(running_.begin(), running_.end(), &sequence));
  else
    waiting_.erase(std::find(waiting_.begin(), waiting_.end(), &sequence));
  sequence.phase = Phase::finished;
  sequence.finish = reason;
  sequence.settled = sequence.length();
  sequence.note_settled();
  sequence.times.ended = Times::now();
  sequence.awaits_route = sequence.reading = sequence.away = false;
  sequence.closing = Finish::none;
  sequence.trial_from = sequence.truncate_pending = -1;
  turns_.changed();
  report(EventKind::finished, sequence);
  if (Sequence* shadow = shadow_of(sequence); shadow && shadow->phase != Phase::finished)
    end(*shadow, Finish::abort);
}

void Scheduler::abort(SequenceId id, Finish reason) {
  Sequence& sequence = find(id);
  if (sequence.phase != Phase::finished) end(sequence, reason);
}

void Scheduler::forget(SequenceId id) {
  if (find(id).phase != Phase::finished)
    throw std::logic_error("sequence " + std::to_string(id) + " is not finished");
  sequences_.erase(id);
}

Counters Scheduler::counters() const {
  Counters all = counters_;
  static_cast<KvCounters&>(all) = kv_.counters();
  return all;
}

std::vector<Event> Scheduler::take_events() {
  std::vector<Event> events;
  events.swap(events_);
  return events;
}

}  // namespace steer
