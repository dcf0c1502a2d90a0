// What a caller asks for.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "types.h"

namespace steer {

// A trial of this many tokens goes on to the end of the answer, past all boundaries.
inline constexpr std::int32_t kWholeAnswer = -1;

// What a caller asks for, fixed from add() on.
struct Request {
  std::vector<Token> prompt;
  std::int32_t max_tokens = 16;
  std::vector<Token> stop_ids;  // end-of-sequence and stop tokens: kept in the list, end the text
  int reader = kNobody;         // the model that reads each boundary before the decision
  std::int32_t priority = 0;    // lower goes first
  bool settle_at_once = true;   // false: tokens can be taken back until settle()
  std::vector<std::string> stop_strings = {};  // the text ends before the first of them
  std::int32_t min_tokens = 0;                 // the fewest tokens before a stop of any kind
  std::int32_t max_step_tokens = 0;            // a boundary is forced after this many; 0: never
  // Tokens that the reader writes, at most to the step's end, before the decision keeps them or
  // takes them back; 0: it only reads. None of them settles before the decision.
  std::int32_t trial_tokens = 0;
  // Tokens of what ends the thinking part: a boundary follows. It is found as text, however a model
  // splits it into tokens; by these ids where one of them has no text.
  std::vector<Token> think_end = {};
  bool think_closed = false;          // the prompt has ended the thinking part already
  std::int32_t max_think_tokens = 0;  // think_end is written after this many; 0: never
  std::int32_t max_repeats = 0;       // repeats of a piece in a row end the text; 0: any number
  bool ahead = true;                  // may be planned after a token that only the device knows yet
  // If the reader did not write the end of the text, it reads that too, and a decide event asks
  // about it: any route() lets it stand, truncate() takes it back.
  bool ask_at_end = false;
  // The models have different tokens: the large one writes through a shadow, see
  // schedule/relay.cpp.
  bool relay = false;
  int vocabulary = kSmall;  // the model whose tokens these are
  // An audit reads every row of the large model past the prompt, so none of them is taken from the
  // prefix cache: the model computes all.
  bool audited = false;
  // The model that is asked about each row of the prompt; kNobody: none. A row that neither the
  // sequence nor another sample of the prompt has computed is not taken from the prefix cache.
  int scored = kNobody;
  // Tokens that are guessed, at most, before a pass of the large model, which verifies them; the
  // text stays the same, see schedule/speculation.cpp. 0: none.
  std::int32_t draft_tokens = 0;
  DraftSource draft_source = DraftSource::small;  // of the guesses
  // The small model guesses every token that the large one would write, and what is drawn after the
  // text is, where the caller lets the guess stand, the guess: see schedule/speculation.cpp.
  bool verified = false;
  // After a guess that did not stand only the large model's own tokens do, up to the step's end.
  bool finishes_step = false;

  // Whether the text begins with a thinking part.
  bool thinks() const { return !think_end.empty() && !think_closed; }
};

}  // namespace steer
