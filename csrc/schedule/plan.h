// A lane's plan: preallocated int32 buffers that the runner reads in place.
#pragma once

#include <cstdint>
#include <vector>

#include "kv/kv_plan.h"
#include "schedule/sequence.h"

namespace steer {

// Plans of a lane that can be in flight at once.
inline constexpr int kDepth = 2;

// One tick of one lane. Buffers keep their addresses for the scheduler's lifetime; the contents
// are valid from the plan() that fills them to the next one that does.
struct Plan : KvPlan {
  std::int32_t sequences = 0;  // rows of the per-sequence buffers
  std::int32_t rows = 0;       // rows of the per-token buffers
  std::int32_t draws = 0;      // tokens that its commit takes: max(1, samples[i]) a sequence
  bool in_flight = false;      // planned and not yet committed

  std::vector<std::int32_t> tokens;     // [rows] token ids; -1 - i: what sequence i of the lane's
                                        // plan before this one samples
  std::vector<std::int32_t> positions;  // [rows] position in the sequence
  std::vector<std::int32_t> slots;      // [rows] where its KV goes: block * block_tokens + offset
  std::vector<std::int32_t> starts;     // [sequences + 1] first row of each sequence
  std::vector<std::int32_t> contexts;   // [sequences] keys visible to its last row
  std::vector<std::int32_t> samples;    // [sequences] how many of its last rows are sampled from
  std::vector<std::int32_t> guesses;    // [sequences] 1 if its draw is a guess at what the large
                                        // model draws there
  std::vector<std::int32_t> attempts;   // [sequences] keys the random draw
  std::vector<std::int32_t> blocks;     // [sequences, table_width] block ids, padded with 0
  std::vector<std::int64_t> ids;        // [sequences] sequence ids
  std::vector<Sequence*> members;       // [sequences] owned by the scheduler; null: rows are void

  Plan(std::int32_t max_rows, std::int32_t max_sequences, std::int32_t table_width,
       std::int32_t host_slots);
  // Empties it, for tick `next` of the lane.
  void clear(Tick next);
  // Appends `span` rows of `sequence` after those that are computed or in flight; if none are in
  // flight, these are now. The caller ensures that they fit.
  void add(Sequence& sequence, int lane, std::int32_t span, std::int32_t block_tokens);

  std::int32_t table_width;
};

}  // namespace steer
