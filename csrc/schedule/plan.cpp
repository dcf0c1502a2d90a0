#include "schedule/plan.h"

#include <algorithm>

namespace steer {

Plan::Plan(std::int32_t max_rows, std::int32_t max_sequences, std::int32_t width,
           std::int32_t host_slots)
    : KvPlan(max_sequences, host_slots),
      tokens(max_rows),
      positions(max_rows),
      slots(max_rows),
      starts(max_sequences + 1),
      contexts(max_sequences),
      samples(max_sequences),
      guesses(max_sequences),
      attempts(max_sequences),
      blocks(static_cast<std::size_t>(max_sequences) * width),
      ids(max_sequences),
      table_width(width) {
  members.reserve(max_sequences);
}

void Plan::clear(Tick next) {
  KvPlan::clear(next);
  sequences = rows = draws = 0;
  starts[0] = 0;
  members.clear();
}

void Plan::add(Sequence& sequence, int lane, std::int32_t span, std::int32_t block_tokens) {
  const std::int32_t first = sequence.computed[lane] + sequence.in_flight[lane];
  const std::int32_t last = first + span, length = sequence.length(), known = sequence.known();
  const Token unknown = -1 - sequence.row[lane];
  const auto& table = sequence.blocks[lane];
  for (std::int32_t position = first; position < last; ++position, ++rows) {
    tokens[rows] = position < length  ? sequence.tokens[position]
                   : position < known ? sequence.draft[position - length]
                                      : unknown;
    positions[rows] = position;
    slots[rows] = table[position / block_tokens] * block_tokens + position % block_tokens;
  }
  std::int32_t* row = blocks.data() + static_cast<std::size_t>(sequences) * table_width;
  std::fill(std::copy(table.begin(), table.end(), row), row + table_width, 0);
  ids[sequences] = sequence.id;
  contexts[sequences] = last;
  // The large model draws after each guess; one that guesses, only after the last token.
  const bool drafts = sequence.drafts(lane);
  const std::int32_t drawn = last - std::max(first, (drafts ? known : length) - 1);
  samples[sequences] = std::max(0, drawn);
  guesses[sequences] = drafts && drawn > 0;
  draws += std::max(1, drawn);
  attempts[sequences] = sequence.attempt;
  members.push_back(&sequence);
  if (sequence.in_flight[lane] == 0) {
    sequence.in_flight[lane] = span;
    sequence.row[lane] = sequences;
  }
  starts[++sequences] = rows;
}

}  // namespace steer
