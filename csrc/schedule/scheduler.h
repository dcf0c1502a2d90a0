// The scheduler: which sequences run, on which model, over which rows and which blocks.
//
// Two lanes with clocks of their own. Each lane alternates plan() and commit(); between the two
// its batch is in flight, while the other lane plans and commits as it likes. A lane may also plan
// one tick ahead: after the batch in flight, on tokens that it is about to give. Everything is a
// span: "lane m computes tokens[computed[m] : length]". Decode is a span of one, prefill a span of
// many, a handoff only changes which model is active.
//
// What a token does to a text is decided by the TextReader, where KV lies by the KvCache; neither
// knows the order of the sequences. What is here follows from that one order: which sequence runs,
// waits, or gives up memory. So it is one state machine, with a file for each of its rules.
//
// Not thread-safe: one host thread drives both lanes. Sequences live here from add() to forget().
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "kv/kv_cache.h"
#include "schedule/forecast.h"
#include "schedule/guard.h"
#include "schedule/lane_policy.h"
#include "schedule/plan.h"
#include "schedule/sequence.h"
#include "text/text_reader.h"
#include "types.h"

namespace steer {

struct SchedulerConfig {
  SlabId slabs = 1;
  std::array<std::int32_t, kModels> slots{1, 1};  // blocks of each model in a slab
  std::int32_t block_tokens = 16;
  std::int32_t max_context = 1024;                       // tokens of one sequence
  std::int32_t max_sequences = 64;                       // running at once
  std::int32_t max_waiting = 0;                          // queued at once; 0: any number
  std::int32_t max_tick_tokens = 512;                    // rows of one plan
  std::array<double, kModels> recompute_cost{1.0, 1.0};  // of one token, in any common unit
  bool prefix_cache = false;                             // share full settled blocks of prefixes
  // A lane reads along with a sequence that the other one writes once it lags this many settled
  // tokens behind, with the rows and the free blocks that no other sequence needs; 0: it does not.
  std::array<std::int32_t, kModels> background{0, 0};
  LaneSettings lanes = {};
  // Blocks of the large model that host memory keeps when the arena needs theirs; 0: none. They are
  // found through the prefix cache, which must be on.
  std::int32_t host_blocks = 0;
  // Sequences are admitted as soon as the arena holds what they need now, without a forecast.
  bool eager_admission = false;
  // Rows of a plan that are sampled from, at most: each sequence's last one, and those that verify
  // guesses. 0: as many as rows.
  std::int32_t max_drawn_rows = 0;
};

struct Counters : KvCounters {
  std::int64_t admitted = 0;
  std::int64_t preemptions = 0;                    // sequences that lost KV to others or by force
  std::int64_t suspended = 0;                      // sequences stopped because others needed KV
  std::array<std::int64_t, kModels> lost_rows{};   // rows of KV they lost
  std::array<std::int64_t, kModels> recomputed{};  // rows computed again
  std::array<std::int64_t, kModels> ticks{};       // plans that were not empty
  std::array<std::int64_t, kModels> background{};  // rows that were read along
  std::array<std::int64_t, kModels> held{};        // plans put off by the lane policy
  std::array<std::int64_t, kModels> ahead{};       // rows planned after others in flight
  std::array<std::int64_t, kModels> voided{};      // of these, those that were computed in vain
};

class Scheduler {
 public:
  // Throws std::invalid_argument that says what is wrong and what would be right. If the models
  // have different tokens, `large_token_bytes` are those of the large one.
  Scheduler(const SchedulerConfig& config, const std::vector<std::string>& delimiters,
            std::vector<std::string> token_bytes, std::vector<std::string> large_token_bytes = {});

  // Queues a request. Throws std::invalid_argument if it can never run: empty prompt, prompt and
  // max_tokens past the context, or more KV than the arena holds for either model alone.
  // Throws std::overflow_error when the queue is full: try again later.
  // The sequence stands at boundary 0. Without a reader it must be routed before it can run.
  // With `samples` > 1 that many sequences are queued, all or none; their ids are consecutive and
  // the first is returned. They share the prompt's KV while they run.
  SequenceId add(Request request, std::int32_t samples = 1);

  // Plans the next tick of a lane; returns the number of sequences in it, 0 when there is nothing
  // to do now. Throws std::logic_error while the lane's last plan is in flight; with `ahead` while
  // its last two are. A plan made ahead must run after the one in flight: sequences of that one go
  // on in it, if need be with a token that the host does not know yet. Nothing is ever planned
  // twice, and rows that turn out not to follow are void: computed in vain, their token ignored.
  std::int32_t plan(int lane, bool ahead = false);
  // A lane's plan is in buffer 0, or in 1 if buffer 0 is in flight.
  const Plan& buffers(int lane, int index = 0) const { return lanes_.at(lane).at(index); }

  // Retires the plan in flight, the older of two. `sampled` holds the drawn tokens of the plan's
  // sequences in order, samples[i] of sequence i, or one that is ignored where samples[i] is 0; -1
  // where logits were unusable (ends that request with an error). Draws of a sequence whose rows
  // are void are ignored. Rows that were planned ahead on a question which has no answer by then
  // are void. Throws std::invalid_argument unless there are `draws` tokens.
  void commit(int lane, std::span<const Token> sampled);

  // For each sequence of the plan that retires next, whether its result will count.
  std::vector<bool> standing(int lane) const;

  // Retires a plan whose forward pass failed, the older of two: its sequences end with
  // Finish::error, except those whose rows are void. Rows of ended sequences in the next plan are
  // void.
  void fail(int lane);

  // Answers a decide event: `model` writes the next step. A candidate that the same model sampled
  // from the boundary's logits is kept, another model's is dropped. May finish the sequence.
  // With `rest` the model writes to the end: later boundaries open steps without a decide event.
  // Tokens on trial are kept if the reader goes on, and taken back if not.
  // With `unread` later boundaries get decide events, but are neither read nor tried, until the
  // thinking part ends. At the end of a text any answer lets the end stand.
  void route(SequenceId id, int model, bool rest = false, bool unread = false);

  // A relayed sequence has these three instead of route(id, kLarge), see relay.cpp.
  //
  // Gives a running sequence its shadow, once, with the prompt in the large model's tokens. The
  // shadow waits. Returns its id. Throws std::invalid_argument if longest() leaves no room to
  // write.
  SequenceId add_shadow(SequenceId id, std::vector<Token> prompt, std::vector<Token> stop_ids,
                        std::vector<Token> think_end);
  // The id of a sequence's shadow; none before add_shadow() and once one of the two is forgotten.
  std::optional<SequenceId> shadow_of(SequenceId id) const;
  // Answers a decide event: the large model writes the next step. `tokens` are its own tokens for
  // the text since its last step. The shadow's next event says that the step is written: decide,
  // which needs no answer, or finished.
  void cross(SequenceId id, const std::vector<Token>& tokens, bool unread = false);
  // Appends that step in the small model's tokens. They may end the sequence's text; else `end`
  // does, or the sequence stands at the next boundary.
  void cross_back(SequenceId id, const std::vector<Token>& tokens, Finish end = Finish::none);

  // Takes back tokens[length:]; not below the prompt or `settled`. A trial that it cuts goes on. If
  // `length` is a step's first token the sequence stands at that boundary again: its reader, if
  // any, reads it once more, and a decide event follows; older events are void. For a sequence in
  // flight this happens when its batch retires, and the token in flight is dropped too; an open
  // decide event is void at once. With nothing to take back (`length` is the sequence's) it does
  // nothing.
  void truncate(SequenceId id, std::int32_t length);
  void settle(SequenceId id, std::int32_t length);

  // Gives up all KV of a sequence, now or when its batch in flight retires; it is computed again
  // when needed.
  void preempt(SequenceId id);
  // Ends a sequence, now or when its batch in flight retires. No effect on finished ones.
  void abort(SequenceId id, Finish reason = Finish::abort);
  // Drops the record of a finished sequence; its id is invalid from then on.
  void forget(SequenceId id);

  // Events since the last call, oldest first.
  std::vector<Event> take_events();

  // Throws std::out_of_range for an id that was never issued or is forgotten.
  const Sequence& sequence(SequenceId id) const;
  Counters counters() const;
  const BlockPool& pool() const { return kv_.pool(); }
  const HostPool& host() const { return kv_.host(); }
  const SchedulerConfig& config() const { return config_; }
  // Most tokens of one sequence that fit the context and the arena.
  std::int64_t longest() const;
  // Sequences that may share the arena now: fewer than max_sequences while the guard acts.
  std::int32_t limit() const { return guard_.limit(); }
  std::int64_t guarded() const { return guard_.acted(); }
  std::size_t running() const { return running_.size(); }
  std::size_t waiting() const { return waiting_.size(); }

  // Checks the records of the pool and of every sequence, and that they agree. Throws
  // std::logic_error.
  void check_integrity() const;

 private:
  enum class Found { now, later, nothing };
  struct Victim {  // blocks that could be taken, see memory.cpp
    SlabId slab = -1;
    const Sequence* tail_of = nullptr;
    std::size_t index = 0;  // of the block in its table
    bool in_flight = false;
    double cost = 0;        // to compute it again
    std::size_t place = 0;  // in the order, of the first sequence that will miss it
  };
  struct Holding {  // slabs
    double least = 0, likely = 0, most = 0;
  };
  class Load;

  Sequence& find(SequenceId id);
  void check_flights(const Sequence& sequence) const;
  void check_host() const;

  // lifecycle.cpp
  void check_request(const Request& request, std::int32_t samples) const;
  void end(Sequence& sequence, Finish reason);
  void finish(Sequence& sequence, Finish reason);
  void report(EventKind kind, const Sequence& sequence, std::int32_t row = -1) {
    events_.push_back({kind, sequence.request_id(), row, sequence.shadow});
  }

  // relay.cpp
  Sequence* shadow_of(const Sequence& sequence) const;
  Sequence* partner_of(const Sequence& sequence) const;
  std::int32_t step_limit(const Sequence& sequence) const;

  // boundaries.cpp
  void append(Sequence& sequence, Token token);
  void try_on(Sequence& sequence, Outcome outcome);
  void conclude(Sequence& sequence, Outcome outcome);
  void ask_at_end(Sequence& sequence, Finish reason);
  void reach_boundary(Sequence& sequence);
  void activate(Sequence& sequence, int model);
  void drop_candidate(Sequence& sequence);
  void check_route(const Sequence& sequence) const;
  void go_on(Sequence& sequence, int model, bool rest, bool unread);
  void keep_trial(Sequence& sequence, bool rest, bool unread);

  // rollback.cpp
  Step take_back(Sequence& sequence, std::int32_t length, std::array<std::int32_t, kModels> rows);
  void truncate_now(Sequence& sequence, std::int32_t length);
  void discard_tokens(Sequence& sequence, std::int32_t length);
  void take_rows(Sequence& sequence, int model, std::int32_t rows);

  // sharing.cpp
  void reuse_prefix(Sequence& sequence, int lane, std::int32_t end);
  bool follows_sample(const Sequence& sequence, int lane) const;
  void share_prompt(Sequence& sequence, int lane);
  void restore(Sequence& sequence);
  void book_spared(Sequence& sequence, int lane, std::int32_t first);
  void register_blocks(Sequence& sequence, int model);

  // ahead.cpp
  bool goes_ahead(const Sequence& sequence, int lane) const;
  void add_ahead(Plan& plan, int lane, Sequence& sequence, std::int32_t wanted);
  void settle_ahead(Sequence& sequence) {
    for (int lane = 0; bets_ > 0 && lane < kModels; ++lane) settle_ahead(sequence, lane);
  }
  void settle_ahead(Sequence& sequence, int lane);
  void drop_ahead(Sequence& sequence, int lane);

  // admission.cpp
  void admit();
  void admit_while_there_is_room();
  std::array<std::int64_t, kModels> room() const;
  bool fits_now(const Sequence& next, std::array<std::int64_t, kModels>& room) const;
  Survival expected_lengths() const;
  double horizon(const Survival& survival) const;
  bool stands_still(const Sequence& sequence) const;
  bool has_room_for(const Load& load);
  Holding holding(const Sequence& sequence, int model, double tokens) const;
  double shared_slabs(const Sequence& sequence) const;
  std::int32_t found_blocks(const Sequence& sequence, int model) const;
  std::int32_t missing_blocks(const Sequence& sequence, int model) const;
  Sequence* leader() const;
  Sequence* next_in_line() const;
  std::int32_t active() const;
  void let_run(Sequence& sequence);
  void suspend(Sequence& sequence);

  // tick.cpp
  const Plan* oldest(int lane) const;
  Plan& filling(int lane) { return lanes_[lane][lanes_[lane][0].in_flight]; }
  bool holds(int lane, bool ahead);
  std::int32_t runnable(int lane, bool ahead = false) const;
  void add_spans(int lane, bool ahead);
  void add_span(Plan& plan, int lane, Sequence& sequence, std::int32_t wanted);
  void read_along(int lane, Sequence& sequence);

  // speculation.cpp
  void open_rounds();
  std::int32_t most_guesses() const;
  void open_round(Sequence& sequence, std::int32_t most);
  void open_verified(Sequence& sequence, std::int32_t most);
  void start_guessing(Sequence& sequence, std::int32_t wanted);
  void keep_leftover(Sequence& sequence, std::int32_t length);
  std::vector<Token> left_over(Sequence& sequence, std::int32_t wanted);
  std::vector<Token> looked_up(Sequence& sequence, std::int32_t wanted);
  std::int32_t verify_next(Sequence& sequence, std::vector<Token> guesses);
  void add_drafts(bool ahead);
  std::int32_t take_draft_blocks(Sequence& sequence, int lane, std::int32_t first,
                                 std::int32_t rows);
  std::int32_t reserve_draft(Sequence& sequence, std::int32_t rows);
  void cut_rows(Sequence& sequence, int model, std::int32_t rows);
  void close_round(Sequence& sequence);
  void guess(Sequence& sequence, std::int64_t keys, Token token);
  void count_guess(Sequence& sequence, RowKind kind, std::int64_t keys);
  void verify(Sequence& sequence, std::span<const Token> draws);
  bool compare(Sequence& sequence, Token guess, Token drawn, std::int32_t place);
  void promote_guess(Sequence& sequence);

  // retire.cpp
  Plan& landing(int lane);
  void land(int lane, Plan& plan, bool done = true);
  void account(Sequence& sequence, int lane, std::int32_t first, std::int32_t last);
  void count_sampled(Sequence& sequence, int lane, RowKind kind, std::int64_t keys);
  void retire(Sequence& sequence, int lane, std::int32_t row, std::span<const Token> draws);
  void take_effect(Sequence& sequence);

  // memory.cpp
  std::int32_t reserve(Sequence& sequence, int lane, std::int32_t span);
  std::optional<BlockId> find_block(const Sequence& sequence, int lane);
  Found make_room(const Sequence& sequence, int lane);
  std::vector<Sequence*> holders(int lane, BlockId block, std::size_t index) const;
  bool is_at_rest(SlabId slab) const;
  bool may_take(const Sequence& from, int model, const Sequence& requester) const;
  void give_up(Sequence& from, int model, std::int32_t rows, const Sequence& requester);
  std::vector<Victim> own_tails(const Sequence& requester, int lane) const;
  std::vector<Victim> other_slabs(const Sequence& requester, int lane) const;
  std::size_t place_of(const Sequence& sequence, int model) const;
  void evacuate(const Victim& victim, const Sequence& requester, int lane);

  SchedulerConfig config_;
  TextReader text_;
  KvCache kv_;
  std::array<std::vector<Plan>, kModels> lanes_;  // kDepth each
  std::array<Tick, kModels> clock_{0, 0};
  std::unordered_map<SequenceId, std::unique_ptr<Sequence>> sequences_;
  std::vector<Sequence*> running_;  // in order
  std::deque<Sequence*> waiting_;   // in order
  std::vector<Event> events_;
  LaneTurns turns_;
  Counters counters_;
  std::int32_t shadows_ = 0;      // among running_
  std::int64_t bets_ = 0;         // spans that are planned ahead and neither promoted nor void
  std::int32_t suspended_ = 0;    // among running_
  std::int32_t speculating_ = 0;  // unfinished sequences with draft_tokens
  Forecast forecast_;
  Guard guard_;
  bool was_short_ = false;     // one was suspended, and little memory has been free since
  bool admission_due_ = true;  // something has changed since the last look for one
  std::int32_t plans_since_look_ = 0;
  SequenceId next_id_ = 1;
};

}  // namespace steer
