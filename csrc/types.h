// The vocabulary of the core: ids, row kinds, events. No Torch, no CUDA, no Python.
//
// The names of an enumeration stand beside it. The bindings export numbers and names from here:
// Python writes none of them down.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace steer {

using Token = std::int32_t;
using SequenceId = std::int64_t;
using BlockId = std::int32_t;
using SlabId = std::int32_t;
using Tick = std::int64_t;

// The two models, which are also the two lanes.
inline constexpr int kModels = 2;
inline constexpr int kSmall = 0;
inline constexpr int kLarge = 1;
inline constexpr int kNobody = -1;

// Does an enumeration that ends with `last` have as many enumerators as there are names?
template <std::size_t size, typename Enumeration>
constexpr bool names_all(const std::array<const char*, size>&, Enumeration last) {
  return size == static_cast<std::size_t>(last) + 1;
}

// Every computed row has exactly one kind.
//   prompt     first computation of a prompt token
//   catchup    first computation of a token that lies past the prompt
//   sampled    its logits gave a token that was kept
//   discarded  its logits gave a token that was dropped, or it was computed ahead in vain
//   recompute  its KV had been there before and was given up
//   drafted    of the small model: its logits gave a guess that the large model drew as well
//   rejected   of the small model: its logits gave any other guess
// The kinds of rows that gave a token win over the others: the last row of a catch-up is the one
// that samples.
enum class RowKind : int { prompt, catchup, sampled, discarded, recompute, drafted, rejected };
inline constexpr int kRowKinds = 7;
inline constexpr std::array kRowKindNames{"prompt",    "catchup", "sampled", "discarded",
                                          "recompute", "drafted", "rejected"};
static_assert(kRowKindNames.size() == kRowKinds && names_all(kRowKindNames, RowKind::rejected));

enum class Finish : int { none, stop, length, abort, error, deadline, repetition };
inline constexpr std::array kFinishNames{"none",  "stop",     "length",    "abort",
                                         "error", "deadline", "repetition"};
static_assert(names_all(kFinishNames, Finish::repetition));

// `rows` computed and the sum of `keys` that those rows attend to, each row itself included.
struct RowCount {
  std::int64_t rows = 0;
  std::int64_t keys = 0;

  void add(std::int64_t first, std::int64_t last) {  // positions [first, last)
    rows += last - first;
    keys += (last * (last + 1) - first * (first + 1)) / 2;
  }
  void operator+=(const RowCount& other) { rows += other.rows, keys += other.keys; }
  void operator-=(const RowCount& other) { rows -= other.rows, keys -= other.keys; }
};

using RowCounts = std::array<RowCount, kRowKinds>;  // by kind

inline void add_counts(RowCounts& to, const RowCounts& more) {
  for (int kind = 0; kind < kRowKinds; ++kind) to[kind] += more[kind];
}

// Most guesses that one pass of the large model verifies.
inline constexpr int kMostDrafts = 15;

// Where the guesses that the large model verifies come from.
//   small   the small model writes them, and what it wrote before it was taken back are the first
//   lookup  what followed when the text's last tokens stood in it, or in the prompt, before
//   both    lookup where the last tokens that stood there before are enough, else small
enum class DraftSource : int { small, lookup, both };
inline constexpr std::array kDraftSourceNames{"small", "lookup", "both"};
static_assert(names_all(kDraftSourceNames, DraftSource::both));

// What speculation did for a sequence. A pass of the large model counts if it drew text, with
// guesses or without; a round is such a pass with guesses.
struct SpeculationCounts {
  std::int64_t passes = 0;
  std::int64_t tokens = 0;  // that these passes appended to the text
  std::int64_t rounds = 0;
  std::int64_t drafted = 0;    // guesses that the small model drew as guesses
  std::int64_t looked_up = 0;  // guesses that were found in the text
  std::int64_t reused = 0;     // guesses that the small model had written as text, taken back since
  std::int64_t compared = 0;   // up to and with a round's first wrong guess, none after an end
  std::int64_t accepted = 0;
  std::array<std::int64_t, kMostDrafts> accepted_at{};  // by place in the draft
};

// What a sequence cost on each model. `spared` is what it did not cost: rows taken from the prefix
// cache or copied back from host memory, by the kind that they would have had. `entries` is not
// work that was done: it is the prefix that a server without memory of the sequence would have to
// read at each entry of a model.
struct Usage {
  std::array<RowCounts, kModels> rows{};
  std::array<RowCounts, kModels> spared{};
  std::array<RowCount, kModels> entries{};
  std::array<std::int64_t, kModels> cached{};  // rows taken from the prefix cache, not computed
  std::int64_t restored = 0;  // rows of the large model copied back from host memory
  // Rows that the reader still had to compute at boundaries past the prompt, the boundary's own row
  // not counted: decisions waited for them.
  std::int64_t decision_wait = 0;
  SpeculationCounts speculation;
};

// A decide event asks the caller to route a sequence. `row` is the plan row whose logits describe
// the boundary, or -1 where the sequence has no reader or was written on in trial.
enum class EventKind : int { decide, finished };
inline constexpr std::array kEventKindNames{"decide", "finished"};
static_assert(names_all(kEventKindNames, EventKind::finished));

struct Event {
  EventKind kind;
  SequenceId sequence;  // with `shadow` the one whose shadow it is about
  std::int32_t row;
  bool shadow;
};

}  // namespace steer
