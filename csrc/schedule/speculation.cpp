// Speculation: the large model verifies in one pass many guesses at what it is about to draw.
//
// Guesses are not text. A sequence has a second short list, its draft, which follows its tokens;
// nothing that reads text sees it. A round of guesses that the small model draws goes
//
//   open      the small lane computes what it lacks of text and draft, and each of its ticks adds a
//             guess; the large lane may read text meanwhile, but not its last token
//   closed    the draft is as long as wanted, or the text would end or pause after it, or the small
//             lane has planned without it: the large lane computes its usual span of text and
//             draft, and draws after the text's last token and after each guess
//   verified  the large model's draws are appended one by one, as ever, up to the first that
//             differs from the guess, or to where the text says so
//
// So every token is the large model's own draw, and a text is what it is without guesses. Rows of
// guesses that were wrong are cut from both models here and nowhere else.
//
// A draft takes no KV from any sequence, and rows of the small lane only if others leave them.
//
// A *verified* sequence is one whose text is the small model's where the large one lets it stand.
// The rounds are the same; what differs is that no token is written without a guess:
//
//   - its guesses are planned as a text is, in the order of all sequences and with the same claim
//     to memory: while a round is open the small model is the active one
//   - the large model does not draw after the last guess: what follows is guessed first
//   - it is the caller that puts a guess in the place of the large model's draw, see
//     engine/execution/sampler.py; here a guess stands if it comes back as the draw
//
// Guesses that are there already are not drawn: the round is closed as it begins. So it is with
// what the small model wrote just here before it was taken back, and with what followed when the
// text's last tokens stood in it before. No row of the small model is in that draft.
#include <algorithm>
#include <limits>
#include <utility>

#include "schedule/scheduler.h"
#include "text/lookup.h"

namespace steer {

namespace {

// Of the last tokens so many must have stood in the text before. Two in a row are a word or less,
// so a guess after two is often wrong: that costs the large model some rows of a pass where there
// would be no guess, but not worth it where the small model could guess instead.
constexpr std::int32_t kShortestMatch = 2;
constexpr std::int32_t kShortestMatchBeforeSmall = 3;

}  // namespace

// Rounds begin before a lane plans: for each sequence that the large model is about to draw for. No
// more is guessed than one of its passes can verify.
void Scheduler::open_rounds() {
  if (speculating_ == 0) return;
  std::int32_t left = most_guesses();
  const auto rows = [](const Sequence& sequence) {
    return std::max(0, sequence.round.wanted - sequence.request.verified);
  };
  for (const Sequence* sequence : running_) left -= rows(*sequence);
  for (Sequence* sequence : running_) {
    if (!sequence->may_open_round()) continue;
    if (sequence->request.verified)
      open_verified(*sequence, std::max(left, 0));
    else if (left > 0)
      open_round(*sequence, left);
    left -= rows(*sequence);
  }
}

// The small model writes what the large one may let stand. The last of its guesses needs no row of
// the pass that verifies them.
void Scheduler::open_verified(Sequence& sequence, std::int32_t most) {
  const Request& request = sequence.request;
  sequence.active = kSmall;
  turns_.changed();
  const std::int32_t left = request.max_tokens - sequence.generated();
  start_guessing(sequence, 1 + std::min({most, request.draft_tokens - 1, left - 1}));
}

void Scheduler::start_guessing(Sequence& sequence, std::int32_t wanted) {
  sequence.round.wanted = wanted;
  sequence.round.open = sequence.round.drawn = true;
  // The last row's logits are gone, if it is computed: a reader did so at a boundary.
  if (sequence.computed[kSmall] == sequence.length())
    kv_.keep_rows(sequence, kSmall, sequence.length() - 1);
}

// Guesses that a pass of the large model can verify beside a row of each sequence.
std::int32_t Scheduler::most_guesses() const {
  if (config_.max_drawn_rows == 0) return std::numeric_limits<std::int32_t>::max();
  return config_.max_drawn_rows - static_cast<std::int32_t>(running_.size());
}

void Scheduler::open_round(Sequence& sequence, std::int32_t most) {
  const Request& request = sequence.request;
  // The pass that verifies draws one token more.
  const std::int32_t wanted =
      std::min({most, request.draft_tokens, request.max_tokens - sequence.generated() - 1});
  if (wanted <= 0 || sequence.must_stop_thinking(1)) return;
  SpeculationCounts& counts = sequence.usage.speculation;
  if (std::vector<Token> left = left_over(sequence, wanted); !left.empty()) {
    counts.reused += verify_next(sequence, std::move(left));
  } else if (std::vector<Token> like = looked_up(sequence, wanted); !like.empty()) {
    counts.looked_up += verify_next(sequence, std::move(like));
  } else if (sequence.has_guesser() &&
             sequence.length() - sequence.computed[kSmall] <= kMostBehind) {
    start_guessing(sequence, wanted);
  }
}

// The sequence is about to lose the tokens from `length` on: those that the small model wrote there
// are kept as guesses.
void Scheduler::keep_leftover(Sequence& sequence, std::int32_t length) {
  sequence.leftover.tokens.clear();
  if (!sequence.has_guesser()) return;
  std::int32_t end = std::min(sequence.length(), length + sequence.request.draft_tokens);
  for (auto step = sequence.steps.rbegin(); step != sequence.steps.rend(); ++step) {
    if (step->model != kSmall) end = std::min(end, std::max(step->start, length));
    if (step->start <= length) break;
  }
  const auto first = sequence.tokens.begin();
  sequence.leftover.tokens.assign(first + length, first + end);
  sequence.leftover.at = length;
}

// What was taken back at the end of the text, at most `wanted` tokens. Where the large model has
// read the boundary, its first token stands there already: the rest counts if that one was right.
std::vector<Token> Scheduler::left_over(Sequence& sequence, std::int32_t wanted) {
  std::vector<Token> left = std::exchange(sequence.leftover.tokens, {});
  const std::int32_t at = sequence.leftover.at, written = sequence.length() - at;
  if (left.empty() || written < 0 || written > std::ssize(left)) return {};
  if (!std::equal(left.begin(), left.begin() + written, sequence.tokens.begin() + at)) return {};
  left.erase(left.begin(), left.begin() + written);
  if (std::ssize(left) > wanted) left.resize(wanted);
  return left;
}

// What followed the text's last tokens before, `wanted` tokens; none if they did not stand in it,
// or the source is another one.
std::vector<Token> Scheduler::looked_up(Sequence& sequence, std::int32_t wanted) {
  if (!sequence.guesses_from(DraftSource::lookup) || sequence.unlike == sequence.length())
    return {};
  const std::int32_t shortest = sequence.has_guesser() ? kShortestMatchBeforeSmall : kShortestMatch;
  std::vector<Token> guesses = look_up(sequence.tokens, shortest, wanted);
  if (guesses.empty()) sequence.unlike = sequence.length();
  return guesses;
}

// A round of guesses that are there, up to where the text would pause. Returns their number.
std::int32_t Scheduler::verify_next(Sequence& sequence, std::vector<Token> guesses) {
  if (const auto pause = text_.first_pause(sequence, guesses, sequence.pauses_at_boundary()))
    guesses.resize(*pause);
  sequence.draft = std::move(guesses);
  return sequence.round.wanted = static_cast<std::int32_t>(sequence.draft.size());
}

// Plans guesses with the rows and blocks that all other sequences leave, and closes the drafts that
// got none: the large lane waits for rows that come, and for no others.
void Scheduler::add_drafts(bool ahead) {
  Plan& plan = filling(kSmall);
  for (Sequence* sequence : running_) {
    if (!sequence->drafts_aside(kSmall)) continue;
    if (sequence->in_flight[kSmall] > 0) {
      if (ahead && goes_ahead(*sequence, kSmall))
        add_ahead(plan, kSmall, *sequence, sequence->span_ahead(kSmall));
      continue;
    }
    reuse_prefix(*sequence, kSmall, sequence->findable(kSmall));
    const std::int32_t span = sequence->span(kSmall), left = config_.max_tick_tokens - plan.rows;
    if (span > kMostBehind || left <= 0) continue;
    const std::int32_t rows =
        take_draft_blocks(*sequence, kSmall, sequence->computed[kSmall], std::min(span, left));
    if (rows > 0) plan.add(*sequence, kSmall, rows, config_.block_tokens);
  }
  for (Sequence* sequence : running_)
    if (sequence->round.open && !sequence->request.verified && sequence->in_flight[kSmall] == 0)
      close_round(*sequence);
}

// Blocks for `rows` rows from `first` on, none of which another sequence holds; returns the rows
// that it has blocks for. KV that was taken away once comes back into blocks that hold nothing.
std::int32_t Scheduler::take_draft_blocks(Sequence& sequence, int lane, std::int32_t first,
                                          std::int32_t rows) {
  Plan& plan = filling(lane);
  const bool again = first < sequence.highest[lane];
  return kv_.extend(sequence, lane, first, rows, [&]() -> std::optional<BlockId> {
    if (plan.short_of_memory) return std::nullopt;
    return again ? kv_.free_block(lane) : kv_.take_block(lane, plan);
  });
}

// Blocks for at most `rows` guesses after the last token of the text, which is in this plan; the
// draft is cut to what these verify. Returns their number.
std::int32_t Scheduler::reserve_draft(Sequence& sequence, std::int32_t rows) {
  const std::int32_t wanted = sequence.verifying_rows();
  rows = take_draft_blocks(sequence, kLarge, sequence.length(), std::min(rows, wanted));
  if (rows == wanted) return rows;
  sequence.draft.resize(rows + sequence.request.verified);
  for (int model = 0; model < kModels; ++model) cut_rows(sequence, model, sequence.known());
  return rows;
}

// Rows from `rows` on are not of the text: they were never computed for it.
void Scheduler::cut_rows(Sequence& sequence, int model, std::int32_t rows) {
  sequence.highest[model] = std::min(sequence.highest[model], rows);
  if (sequence.computed[model] > rows) kv_.keep_rows(sequence, model, rows);
}

void Scheduler::close_round(Sequence& sequence) {
  sequence.round.open = false;
  sequence.active = kLarge;
  turns_.changed();  // the large lane may go on
}

// The small model has guessed; its row attends to `keys` keys.
void Scheduler::guess(Sequence& sequence, std::int64_t keys, Token token) {
  Round& round = sequence.round;
  count_guess(sequence, RowKind::rejected, keys);  // until the large model draws the same
  guard_.computed(1, active());
  if (token < 0) {
    kv_.forget_blocks(sequence, kSmall);  // do not share KV that gave unusable logits
    round.off = true;
    if (sequence.request.verified && !sequence.pending()) sequence.end_pending = Finish::error;
    return close_round(sequence);
  }
  if (sequence.pending()) return;
  ++sequence.usage.speculation.drafted;
  sequence.draft.push_back(token);
  if (sequence.guesses() >= round.wanted ||
      text_.first_pause(sequence, sequence.draft, sequence.pauses_at_boundary()))
    close_round(sequence);
}

void Scheduler::count_guess(Sequence& sequence, RowKind kind, std::int64_t keys) {
  sequence.usage.rows[kSmall][static_cast<int>(kind)].add(keys - 1, keys);
}

// The large model has drawn after the text's last token and after each guess.
void Scheduler::verify(Sequence& sequence, std::span<const Token> draws) {
  const std::vector<Token> draft = std::exchange(sequence.draft, {});
  const bool has_rows = sequence.round.drawn;
  sequence.drop_round();
  const std::int32_t length = sequence.length(), drawn = static_cast<std::int32_t>(draws.size());
  const auto guesses = static_cast<std::int32_t>(draft.size());
  const bool verified = sequence.request.verified;
  const auto had = sequence.computed;
  ++sequence.usage.speculation.passes;
  sequence.usage.speculation.rounds += !draft.empty();
  std::int32_t kept = 0;
  for (bool goes_on = true; goes_on; ++kept) {
    const Token token = draws[kept];
    if (token < 0) {
      kv_.forget_blocks(sequence, kLarge);
      sequence.end_pending = Finish::error;
      break;
    }
    const bool right = kept < guesses && compare(sequence, draft[kept], token, kept);
    if (right && has_rows) promote_guess(sequence);
    if (verified && (!right || sequence.is_finishing_step()))
      sequence.replaced.push_back(length + kept);
    count_sampled(sequence, kLarge, RowKind::sampled, length + kept);
    ++sequence.usage.speculation.tokens;
    // What is computed of the text as it is now: it may reach a boundary, or end.
    for (int model = 0; model < kModels; ++model)
      sequence.computed[model] = std::min(had[model], length + kept);
    append(sequence, token);
    goes_on =
        right && kept + 1 < drawn && sequence.length() == length + kept + 1 && sequence.draws_on();
  }
  for (std::int32_t i = kept; i < drawn; ++i)
    count_sampled(sequence, kLarge, RowKind::discarded, length + i);
  if (sequence.phase == Phase::finished) return;
  // The last token that was kept has no row yet, whether it was guessed or not.
  sequence.computed = had;
  for (int model = 0; model < kModels; ++model)
    cut_rows(sequence, model, length + std::max(kept - 1, 0));
  if (sequence.pending()) take_effect(sequence);
}

// Is the guess at `place` of the draft what the large model drew?
bool Scheduler::compare(Sequence& sequence, Token guess, Token drawn, std::int32_t place) {
  SpeculationCounts& counts = sequence.usage.speculation;
  ++counts.compared;
  if (guess != drawn) return false;
  ++counts.accepted;
  ++counts.accepted_at[place];
  return true;
}

// The small model's row of the guess that comes next gave what the large model has drawn.
void Scheduler::promote_guess(Sequence& sequence) {
  const std::int64_t keys = sequence.length();
  RowCount row;
  row.add(keys - 1, keys);
  auto& rows = sequence.usage.rows[kSmall];
  rows[static_cast<int>(RowKind::rejected)] -= row;
  rows[static_cast<int>(RowKind::drafted)] += row;
}

}  // namespace steer
