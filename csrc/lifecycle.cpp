// A sequence from add() to forget(): tokens, boundaries, decisions, truncation, the end.
#include <algorithm>
#include <stdexcept>
#include <string>

#include "scheduler.h"

namespace steer {

namespace {

SchedulerConfig checked(SchedulerConfig config) {
  const auto require = [](bool holds, const char* what) {
    if (!holds) throw std::invalid_argument(what);
  };
  require(config.block_tokens > 0, "block_tokens must be at least 1");
  require(config.max_context > 1, "max_context must be at least 2");
  require(config.max_sequences > 0, "max_sequences must be at least 1");
  // A tick serves every decoding sequence and still moves one prefill on: nothing starves.
  require(config.max_tick_tokens > config.max_sequences,
          "max_tick_tokens must be greater than max_sequences");
  return config;
}

}  // namespace

Scheduler::Scheduler(const SchedulerConfig& config, const std::vector<std::string>& delimiters,
                     std::vector<std::string> token_bytes)
    : config_(checked(config)),
      detector_(delimiters, std::move(token_bytes)),
      pool_(config.slabs, config.slots),
      lanes_{Plan(config.max_tick_tokens, config.max_sequences, blocks_for(config.max_context)),
             Plan(config.max_tick_tokens, config.max_sequences, blocks_for(config.max_context))} {}

std::int32_t Scheduler::blocks_for(std::int32_t rows) const {
  return (rows + config_.block_tokens - 1) / config_.block_tokens;
}

SequenceId Scheduler::add(Request request) {
  const auto total = static_cast<std::int64_t>(request.prompt.size()) + request.max_tokens;
  if (request.prompt.empty()) throw std::invalid_argument("the prompt is empty");
  if (request.max_tokens < 1) throw std::invalid_argument("max_tokens must be at least 1");
  if (request.min_tokens < 0 || request.max_step_tokens < 0)
    throw std::invalid_argument("min_tokens and max_step_tokens must be 0 or more");
  if (config_.max_waiting > 0 && static_cast<std::int32_t>(waiting_.size()) >= config_.max_waiting)
    throw std::overflow_error("the queue is full: " + std::to_string(config_.max_waiting) +
                              " requests wait");
  if (request.reader < kNobody || request.reader >= kModels)
    throw std::invalid_argument("reader must be -1, 0 or 1");
  if (total > config_.max_context)
    throw std::invalid_argument("prompt of " + std::to_string(request.prompt.size()) +
                                " tokens and max_tokens " + std::to_string(request.max_tokens) +
                                " exceed the context of " + std::to_string(config_.max_context) +
                                " tokens");
  const std::int64_t fits = static_cast<std::int64_t>(config_.slabs) *
                            std::min(config_.slots[kSmall], config_.slots[kLarge]) *
                            config_.block_tokens;
  if (total > fits)
    throw std::invalid_argument("prompt and max_tokens need KV for " + std::to_string(total) +
                                " tokens, the arena holds " + std::to_string(fits));
  auto sequence = std::make_unique<Sequence>();
  sequence->id = next_id_++;
  sequence->tokens = request.prompt;
  sequence->tokens.reserve(total);
  sequence->settled = static_cast<std::int32_t>(request.prompt.size());
  if (!request.stop_strings.empty())
    sequence->stops = std::make_shared<const Automaton>(request.stop_strings);
  sequence->request = std::move(request);
  insert_in_order(waiting_, sequence.get());
  reach_boundary(*sequence);
  const SequenceId id = sequence->id;
  sequences_.emplace(id, std::move(sequence));
  return id;
}

Sequence& Scheduler::find(SequenceId id) {
  const auto found = sequences_.find(id);
  if (found == sequences_.end()) throw std::out_of_range("unknown sequence " + std::to_string(id));
  return *found->second;
}

const Sequence& Scheduler::sequence(SequenceId id) const {
  return const_cast<Scheduler*>(this)->find(id);
}

// After a decision for the rest nobody is asked. With a reader, the reader computes the boundary
// first and the event follows in commit().
void Scheduler::reach_boundary(Sequence& sequence) {
  if (sequence.rest_from >= 0) {
    sequence.cursor = StepDetector::open_step(sequence.cursor);
    sequence.steps.push_back({sequence.length(), sequence.active, sequence.cursor});
  } else if (sequence.request.reader == kNobody) {
    sequence.awaits_route = true;
    events_.push_back({EventKind::decide, sequence.id, -1});
  } else {
    sequence.awaits_route = false;
    sequence.reading = true;
    sequence.active = sequence.request.reader;
  }
}

void Scheduler::route(SequenceId id, int model, bool rest) {
  Sequence& sequence = find(id);
  if (model < 0 || model >= kModels) throw std::invalid_argument("model must be 0 or 1");
  if (!sequence.awaits_route || sequence.phase == Phase::finished)
    throw std::logic_error("sequence " + std::to_string(id) + " does not await a route");
  const Token candidate = sequence.candidate;
  const bool keep = candidate >= 0 && model == sequence.request.reader;
  if (keep) {
    count_sampled(sequence, model, RowKind::sampled, sequence.candidate_keys);
    sequence.candidate = -1;
  } else {
    drop_candidate(sequence);
  }
  sequence.awaits_route = sequence.reading = false;
  sequence.active = model;
  if (rest) sequence.rest_from = sequence.length();
  sequence.cursor = StepDetector::open_step(sequence.cursor);
  sequence.steps.push_back({sequence.length(), model, sequence.cursor});
  if (keep) append(sequence, candidate);
}

void Scheduler::drop_candidate(Sequence& sequence) {
  if (sequence.candidate < 0) return;
  count_sampled(sequence, sequence.request.reader, RowKind::discarded, sequence.candidate_keys);
  sequence.candidate = -1;
}

void Scheduler::append(Sequence& sequence, Token token) {
  sequence.tokens.push_back(token);
  const bool delimited = detector_.feed(sequence.cursor, token);
  const bool stopped = stops_at(sequence, token);
  if (sequence.request.settle_at_once && !stopped) settle_open(sequence);
  const std::int32_t limit = sequence.request.max_step_tokens;
  const bool too_long = limit > 0 && sequence.length() - sequence.steps.back().start >= limit;
  if (stopped) {
    finish(sequence, Finish::stop);  // a stop beats a delimiter in the same token
  } else if (sequence.generated() >= sequence.request.max_tokens) {
    finish(sequence, Finish::length);
  } else if (delimited || too_long) {
    reach_boundary(sequence);
  }
}

// Does the text end with the token that was just appended? Not before `min_tokens`. What stopped it
// is cut from the text.
bool Scheduler::stops_at(Sequence& sequence, Token token) {
  const bool early = sequence.generated() <= sequence.request.min_tokens;
  if (match_stop(sequence, token, early)) return true;
  const auto& ids = sequence.request.stop_ids;
  if (early || std::find(ids.begin(), ids.end(), token) == ids.end()) return false;
  sequence.cut_bytes = static_cast<std::int32_t>(detector_.text(token).size());
  return true;
}

// Moves the search for stop strings over a token. The first match counts, unless matches are to be
// ignored; what follows it in the token is cut with it.
bool Scheduler::match_stop(Sequence& sequence, Token token, bool ignored) const {
  if (!sequence.stops) return false;
  const std::string& text = detector_.text(token);
  for (std::size_t i = 0; i < text.size(); ++i) {
    sequence.stop_node = sequence.stops->next(sequence.stop_node, text[i]);
    const std::int32_t match = sequence.stops->match(sequence.stop_node);
    if (match == 0) continue;
    sequence.stop_node = Automaton::kStart;
    if (ignored) continue;
    sequence.cut_bytes = match + static_cast<std::int32_t>(text.size() - i - 1);
    return true;
  }
  return false;
}

// Settles all but the tokens that may yet turn out to belong to a stop string.
void Scheduler::settle_open(Sequence& sequence) {
  std::int32_t end = sequence.length();
  if (sequence.stops) {
    auto open = static_cast<std::int64_t>(sequence.stops->pending(sequence.stop_node));
    for (; open > 0 && end > sequence.settled; --end)
      open -= static_cast<std::int64_t>(detector_.text(sequence.tokens[end - 1]).size());
  }
  sequence.settled = std::max(sequence.settled, end);
}

void Scheduler::finish(Sequence& sequence, Finish reason) {
  drop_candidate(sequence);
  for (int model = 0; model < kModels; ++model) keep_rows(sequence, model, 0);
  if (sequence.phase == Phase::running)
    running_.erase(std::find(running_.begin(), running_.end(), &sequence));
  else
    waiting_.erase(std::find(waiting_.begin(), waiting_.end(), &sequence));
  sequence.phase = Phase::finished;
  sequence.finish = reason;
  sequence.settled = sequence.length();
  sequence.awaits_route = sequence.reading = false;
  events_.push_back({EventKind::finished, sequence.id, -1});
}

// Frees the KV past the first `rows` rows. The batch in flight must not hold the sequence.
void Scheduler::keep_rows(Sequence& sequence, int model, std::int32_t rows) {
  auto& blocks = sequence.blocks[model];
  auto& nodes = sequence.nodes[model];
  rows = std::min(sequence.computed[model], rows);
  const std::int32_t full = rows / config_.block_tokens;
  // A block that others may read is never written again: it is left whole or given back.
  if (rows % config_.block_tokens != 0 && static_cast<std::size_t>(full) < nodes.size())
    rows = full * config_.block_tokens;
  sequence.computed[model] = rows;
  for (const auto keep = static_cast<std::size_t>(blocks_for(rows)); blocks.size() > keep;
       blocks.pop_back())
    give_back(model, blocks.back());
  nodes.resize(std::min(nodes.size(), static_cast<std::size_t>(full)));
}

// As keep_rows, for KV that will be missed: counted, and deferred while in flight.
void Scheduler::take_rows(Sequence& sequence, int model, std::int32_t rows) {
  std::int32_t& pending = sequence.keep_pending[model];
  if (sequence.in_flight[model] > 0) {
    pending = pending < 0 ? rows : std::min(pending, rows);
    return;
  }
  if (sequence.computed[model] <= rows) return;
  counters_.lost_rows[model] += sequence.computed[model] - rows;
  ++counters_.preemptions;
  keep_rows(sequence, model, rows);
}

void Scheduler::preempt(SequenceId id) {
  Sequence& sequence = find(id);
  for (int model = 0; model < kModels; ++model) take_rows(sequence, model, 0);
}

void Scheduler::settle(SequenceId id, std::int32_t length) {
  Sequence& sequence = find(id);
  // What is about to be taken back cannot be settled.
  const std::int32_t end =
      sequence.truncate_pending < 0 ? sequence.length() : sequence.truncate_pending;
  if (length < sequence.settled || length > end)
    throw std::invalid_argument("settled must grow and stay within the sequence");
  sequence.settled = length;
  for (int model = 0; model < kModels; ++model) register_blocks(sequence, model);
}

void Scheduler::truncate(SequenceId id, std::int32_t length) {
  Sequence& sequence = find(id);
  if (sequence.phase == Phase::finished)
    throw std::logic_error("sequence " + std::to_string(id) + " is finished");
  if (length < sequence.settled || length > sequence.length())
    throw std::invalid_argument("cannot truncate to " + std::to_string(length) + ": tokens up to " +
                                std::to_string(sequence.settled) + " are settled and there are " +
                                std::to_string(sequence.length()));
  if (length == sequence.length()) return;  // nothing to take back
  if (!sequence.busy()) return truncate_now(sequence, length);
  std::int32_t& pending = sequence.truncate_pending;
  pending = pending < 0 ? length : std::min(pending, length);
}

// What gave tokens[length:] has given tokens that are dropped: booked so. The rows of the tokens
// [first, last) stand one position before them.
void Scheduler::discard_tokens(Sequence& sequence, std::int32_t length) {
  std::int32_t last = sequence.length();
  for (auto step = sequence.steps.rbegin(); last > length; last = (step++)->start) {
    RowCount dropped;
    dropped.add(std::max(step->start, length) - 1, last - 1);
    auto& rows = sequence.usage.rows[step->model];
    rows[static_cast<int>(RowKind::sampled)] -= dropped;
    rows[static_cast<int>(RowKind::discarded)] += dropped;
  }
}

// The detector is restored by reading the open step again from where it began.
void Scheduler::truncate_now(Sequence& sequence, std::int32_t length) {
  drop_candidate(sequence);
  discard_tokens(sequence, length);
  // A question about what is taken back needs no answer any more.
  std::erase_if(events_, [&](const Event& event) { return event.sequence == sequence.id; });
  ++sequence.attempt;
  sequence.tokens.resize(length);
  for (int model = 0; model < kModels; ++model) {
    // The last token's logits are gone with its successor: its row is computed again.
    keep_rows(sequence, model, length - 1);
    sequence.highest[model] = std::min(sequence.highest[model], length);
  }
  auto& steps = sequence.steps;
  Step first_taken = steps.back();
  for (; !steps.empty() && steps.back().start >= length; steps.pop_back())
    first_taken = steps.back();
  if (sequence.rest_from >= length) sequence.rest_from = -1;
  sequence.stop_node = Automaton::kStart;
  for (std::int32_t i = sequence.prompt_length(); i < length; ++i)
    match_stop(sequence, sequence.tokens[i], true);
  sequence.reading = sequence.awaits_route = false;
  if (first_taken.start == length) {
    sequence.cursor = first_taken.cursor;
    return reach_boundary(sequence);
  }
  sequence.active = steps.back().model;
  sequence.cursor = steps.back().cursor;
  for (std::int32_t i = steps.back().start; i < length; ++i)
    detector_.feed(sequence.cursor, sequence.tokens[i]);
}

void Scheduler::abort(SequenceId id, Finish reason) {
  Sequence& sequence = find(id);
  if (sequence.phase == Phase::finished) return;
  if (sequence.busy())
    sequence.end_pending = reason;
  else
    finish(sequence, reason);
}

void Scheduler::forget(SequenceId id) {
  if (find(id).phase != Phase::finished)
    throw std::logic_error("sequence " + std::to_string(id) + " is not finished");
  sequences_.erase(id);
}

std::vector<Event> Scheduler::take_events() {
  std::vector<Event> events;
  events.swap(events_);
  return events;
}

}  // namespace steer
