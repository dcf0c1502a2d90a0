// Speculation: the small model guesses what the large one is about to draw, and the large one
// verifies many guesses in one pass.
//
// Guesses are not text. A sequence has a second short list, its draft, which follows its tokens;
// nothing that reads text sees it. A round goes
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
#include <algorithm>
#include <utility>

#include "schedule/scheduler.h"

namespace steer {

// Rounds begin before a lane plans: for each sequence that the large model is about to draw for.
void Scheduler::open_rounds() {
  if (speculating_ == 0) return;
  for (Sequence* sequence : running_) {
    Round& round = sequence->round;
    if (!sequence->may_open_round()) continue;
    const Request& request = sequence->request;
    // The pass that verifies draws one token more.
    const std::int32_t most = request.max_tokens - sequence->generated() - 1;
    round.wanted = sequence->must_stop_thinking(1) ? 0 : std::min(request.draft_tokens, most);
    round.open = round.wanted > 0;
    // A reader has computed the boundary's last row, whose logits are gone: it is computed again.
    if (round.open && sequence->computed[kSmall] == sequence->length())
      kv_.keep_rows(*sequence, kSmall, sequence->length() - 1);
  }
}

// Plans guesses with the rows and blocks that all other sequences leave, and closes the drafts that
// got none: the large lane waits for rows that come, and for no others.
void Scheduler::add_drafts(bool ahead) {
  Plan& plan = filling(kSmall);
  for (Sequence* sequence : running_) {
    if (!sequence->drafts(kSmall)) continue;
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
    if (sequence->round.open && sequence->in_flight[kSmall] == 0) close_round(*sequence);
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
// draft is cut to those. Returns their number.
std::int32_t Scheduler::reserve_draft(Sequence& sequence, std::int32_t rows) {
  const std::int32_t guesses = sequence.guesses();
  rows = take_draft_blocks(sequence, kLarge, sequence.length(), std::min(rows, guesses));
  if (rows == guesses) return rows;
  sequence.draft.resize(rows);
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
    return close_round(sequence);
  }
  if (sequence.pending()) return;
  ++sequence.usage.speculation.drafted;
  sequence.draft.push_back(token);
  const bool asked = sequence.rest_from < 0;
  if (sequence.guesses() >= round.wanted || text_.pauses_after(sequence, sequence.draft, asked))
    close_round(sequence);
}

void Scheduler::count_guess(Sequence& sequence, RowKind kind, std::int64_t keys) {
  sequence.usage.rows[kSmall][static_cast<int>(kind)].add(keys - 1, keys);
}

// The large model has drawn after the text's last token and after each guess.
void Scheduler::verify(Sequence& sequence, std::span<const Token> draws) {
  const std::vector<Token> draft = std::exchange(sequence.draft, {});
  sequence.drop_round();
  const std::int32_t length = sequence.length(), drawn = static_cast<std::int32_t>(draws.size());
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
    const bool right = kept < drawn - 1 && compare(sequence, draft[kept], token, kept);
    count_sampled(sequence, kLarge, RowKind::sampled, length + kept);
    ++sequence.usage.speculation.tokens;
    // What is computed of the text as it is now: it may reach a boundary, or end.
    for (int model = 0; model < kModels; ++model)
      sequence.computed[model] = std::min(had[model], length + kept);
    append(sequence, token);
    goes_on = right && sequence.length() == length + kept + 1 && sequence.draws_on();
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
  const std::int64_t keys = sequence.length();
  RowCount row;
  row.add(keys - 1, keys);
  auto& rows = sequence.usage.rows[kSmall];
  rows[static_cast<int>(RowKind::rejected)] -= row;
  rows[static_cast<int>(RowKind::drafted)] += row;
  return true;
}

}  // namespace steer
