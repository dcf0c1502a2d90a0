// A sequence: one list of token ids and one `computed` count per model.
//
//   tokens     t0 t1 t2 t3 t4 t5 t6 t7 t8      the only truth
//   computed   small ────────────────────┤     KV exists for tokens[0:8]
//              large ──────────┤               KV exists for tokens[0:4]
//   settled    ────────────────────────┤       can no longer be taken back
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <utility>
#include <vector>

#include "kv/kv_state.h"
#include "text/text_state.h"
#include "types.h"

namespace steer {

// Rows planned after those that are in flight, see ahead.cpp.
struct Ahead {
  std::int32_t rows = 0;   // 0: none
  std::int32_t first = 0;  // position
  std::int32_t attempt = 0;
  std::int32_t row = 0;  // of the sequence in that plan
  std::int32_t plan = 0;
};

enum class Phase : int { waiting, running, finished };
inline constexpr std::array kPhaseNames{"waiting", "running", "finished"};
static_assert(names_all(kPhaseNames, Phase::finished));

// Guesses at what the large model is about to write, see speculation.cpp.
struct Round {
  std::int32_t wanted = 0;  // most guesses of this round; 0: there is no round, and no guess
  bool open = false;        // the small model guesses on; the large one does not draw
  bool drawn = false;       // the small model draws them: there is a row of its for each
  bool off = false;         // for good: the small model's logits were unusable
};

// What the small model wrote and was taken back: guesses if the large model writes there.
struct Leftover {
  std::vector<Token> tokens;
  std::int32_t at = 0;  // length of the text that they followed
};

// The small model guesses no token if it lacks more rows than this; it reads along first.
inline constexpr std::int32_t kMostBehind = 64;

// Moments of its life in seconds of the steady clock, which is Python's time.monotonic(); 0: not
// yet.
struct Times {
  double queued = 0;
  double started = 0;      // left the queue
  double first_token = 0;  // the first token that stands
  double ended = 0;

  static double now() {
    const auto since = std::chrono::steady_clock::now().time_since_epoch();
    return std::chrono::duration<double>(since).count();
  }
};

// What it does and waits for: the fields that every plan reads stand together, with its KV.
struct LaneState {
  Phase phase = Phase::waiting;
  int active = kSmall;       // the model that samples the next token
  bool awaits_route = true;  // at a boundary: the caller decides which model goes on
  bool reading = false;      // the reader computes it before the decision
  bool away = false;         // its shadow writes the open step
  bool suspended = false;    // stopped because others needed its KV, until it fits
  Round round;
  Finish end_pending = Finish::none;                       // these three take effect when the
  std::int32_t truncate_pending = -1;                      // batch in flight retires
  std::array<std::int32_t, kModels> keep_pending{-1, -1};  // rows of KV to keep; -1: all
  std::array<std::int32_t, kModels> in_flight{};           // rows of the planned, unretired tick
  std::array<std::int32_t, kModels> row{};                 // of the sequence in that plan
  std::int32_t attempt = 0;      // truncations so far: keys the draws that follow
  std::int32_t samples = 1;      // sequences that share the prompt
  std::int32_t sample = 0;       // index of this one among them
  std::int32_t rest_from = -1;   // from here on the active model writes on without a question
  std::int32_t trial_from = -1;  // what follows is on trial; -1: nothing is
  SequenceId id = 0;
  SequenceId group = 0;    // the first of the samples
  SequenceId partner = 0;  // of a relayed sequence its shadow, of a shadow its sequence; 0: none
  bool shadow = false;     // the large model's copy of a relayed sequence
  std::array<Ahead, kModels> ahead{};  // only a bet: nothing waits for it

  bool busy() const { return in_flight[kSmall] > 0 || in_flight[kLarge] > 0; }
  // A change to the sequence waits for the batch in flight to retire.
  bool pending() const { return end_pending != Finish::none || truncate_pending >= 0; }
  // The id that the caller knows the text by.
  SequenceId request_id() const { return shadow ? partner : id; }
  // Its own work waits for its shadow, or it is a shadow that waits for its sequence.
  bool waits_for_partner() const { return away || (shadow && awaits_route); }
};

// What reads text knows a sequence as a TextState, what holds KV as a KvState.
struct Sequence : LaneState, KvState, TextState {
  Finish finish = Finish::none;
  Token candidate = -1;  // sampled from the boundary's logits; kept if the reader goes on
  std::int64_t candidate_keys = 0;
  int last_sampler = kNobody;      // counts a model's entries
  Finish closing = Finish::none;   // the end that a decide event asks about
  Outcome trial;                   // how the trial ended, while the decision is out
  std::vector<std::int32_t> cuts;  // to which length each truncation went, oldest first
  std::vector<Token> draft;        // guesses that follow the text; never part of it
  Leftover leftover;
  std::int32_t unlike = -1;  // length at which the last tokens had not stood in the text before
  Usage usage;
  Times times;

  explicit Sequence(TextState text) : TextState(std::move(text)) {}
  // A token may have been settled: the first one is noted.
  void note_settled() {
    if (times.first_token == 0 && settled > prompt_length()) times.first_token = Times::now();
  }
  // The tokens before this position are those of when `attempt` truncations had happened.
  std::int32_t kept_since(std::int32_t attempt) const {
    std::int32_t kept = length();
    for (std::size_t i = std::max(attempt, 0); i < cuts.size(); ++i) kept = std::min(kept, cuts[i]);
    return kept;
  }
  // Tokens of the text and of the draft after it.
  std::int32_t known() const { return length() + guesses(); }
  std::int32_t guesses() const {
    return round.wanted == 0 ? 0 : static_cast<std::int32_t>(draft.size());
  }
  // Does the small model write what the large one verifies? Until its guesses are there it is the
  // active one.
  bool is_verified() const { return request.verified && (round.open || active == kLarge); }
  // Of the guesses those after which the large model draws: what follows the last one is guessed
  // first where all tokens are.
  std::int32_t verifying_rows() const { return std::max(0, guesses() - request.verified); }
  // May its large steps be drafted?
  bool speculates() const { return guesses_from(DraftSource::lookup) || has_guesser(); }
  // With this source, or with both?
  bool guesses_from(DraftSource source) const {
    return request.draft_tokens > 0 &&
           (request.draft_source == source || request.draft_source == DraftSource::both);
  }
  // May the small model guess?
  bool has_guesser() const { return guesses_from(DraftSource::small) && !round.off; }
  // Is the large model about to draw, or to go on drawing, without a question before that?
  bool draws_on() const {
    return phase == Phase::running && active == kLarge && !awaits_route && !reading &&
           trial_from < 0 && !pending();
  }
  // The large model takes a prompt that samples share over with the row that draws.
  bool has_prompt() const { return computed[kLarge] + in_flight[kLarge] >= prompt_length() - 1; }
  bool may_open_round() const {
    return speculates() && round.wanted == 0 && draws_on() && !suspended && !away &&
           computed[kLarge] + in_flight[kLarge] < length() &&
           (samples == 1 || request.verified || has_prompt());
  }
  // Does something else than the next token follow a boundary? A decision, or other rules for what
  // stands.
  bool pauses_at_boundary() const { return rest_from < 0 || is_finishing_step(); }
  // There is no round, and no guess.
  void drop_round() {
    round.wanted = 0;
    round.open = round.drawn = false;
    draft.clear();
  }
  // Does the lane write guesses?
  bool drafts(int lane) const {
    return round.open && lane == kSmall && phase == Phase::running && !suspended && !pending();
  }
  // The same, and the text goes on without them if need be.
  bool drafts_aside(int lane) const { return active != lane && drafts(lane); }
  // Rows of the text that lane `model` would have to compute now. While guesses are being written
  // its last row is left for the pass that verifies them.
  std::int32_t text_span(int model) const {
    return length() - (round.open && model == kLarge) - computed[model];
  }
  // The same with the guesses that come after them.
  std::int32_t span(int model) const {
    if (model == kSmall) return known() - computed[model];
    return text_span(model) + (round.open ? 0 : verifying_rows());
  }
  // Rows that the lane needs to write on, the large one without those that verify.
  std::int32_t writing_span(int lane) const {
    return lane == kSmall ? span(lane) : text_span(lane);
  }
  bool runnable(int lane) const {
    if (phase != Phase::running || awaits_route || away || suspended || in_flight[lane] > 0 ||
        pending())
      return false;
    return active == lane ? !round.open || span(lane) > 0 : drafts(lane);
  }
  // Rows after those in flight: the known rest of the text, else the token in flight.
  std::int32_t span_ahead(int model) const {
    return std::max(1, known() - computed[model] - in_flight[model]);
  }
  // Rows before this one may come from the cache instead of being computed: the last row's logits
  // are needed, and so are those of an audited text from the prompt's last row on, and each one of
  // a scored prompt once.
  std::int32_t findable(int model) const {
    if (scores_prompt(model)) return highest[model];
    const std::int32_t end = request.audited && model == kLarge ? prompt_length() : length();
    return end - 1 - (round.open && model == kLarge);  // one row besides the last, which waits
  }
  // Does the model still owe logits of the prompt? Samples compute each row once between them. The
  // prompt's last row predicts no token of the prompt.
  bool scores_prompt(int model) const {
    return request.scored == model && highest[model] < prompt_length() - 1;
  }
  // The rows [first, last) by the kind that they would have if they were computed now and none
  // were sampled from.
  RowCounts kinds(int model, std::int32_t first, std::int32_t last) const {
    const std::int32_t fresh = std::max(first, highest[model]), prompt = prompt_length();
    RowCounts found{};
    const auto book = [&](RowKind kind, std::int32_t from, std::int32_t to) {
      if (from < to) found[static_cast<int>(kind)].add(from, to);
    };
    book(RowKind::recompute, first, std::min(last, fresh));
    book(RowKind::prompt, fresh, std::min(last, prompt));
    book(RowKind::catchup, std::max(fresh, prompt), last);
    return found;
  }
  // By the decisions so far it will not go to `model` any more.
  bool is_done_with(int model) const {
    const bool asks = closing != Finish::none || (request.ask_at_end && request.reader == model);
    return rest_from >= 0 && active != model && !asks && !is_verified();
  }
};

// Both lanes share one order: priority, then arrival; a shadow comes after its sequence.
inline bool goes_before(const Sequence& a, const Sequence& b) {
  if (a.request.priority != b.request.priority) return a.request.priority < b.request.priority;
  const SequenceId first = a.request_id(), second = b.request_id();
  return first != second ? first < second : !a.shadow && b.shadow;
}

// Inserts a sequence into a list that is in order.
void insert_in_order(auto& list, Sequence* sequence) {
  list.insert(
      std::upper_bound(list.begin(), list.end(), sequence,
                       [](const Sequence* a, const Sequence* b) { return goes_before(*a, *b); }),
      sequence);
}

}  // namespace steer
