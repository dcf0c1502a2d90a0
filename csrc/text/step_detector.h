// Finds where reasoning steps end: delimiters as byte patterns, matched across token seams.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "text/automaton.h"
#include "types.h"

namespace steer {

// Immutable and shared by all sequences; a sequence keeps a Cursor of its own.
class StepDetector {
 public:
  // Where a sequence stands. `bytes` counts the text of the open step, `delimiter_bytes` those of
  // them that matched delimiters cover.
  struct Cursor {
    std::int32_t node = Automaton::kStart;
    std::int64_t bytes = 0;
    std::int64_t delimiter_bytes = 0;
  };

  // `token_bytes[id]` is the text of token `id`, empty for specials. Throws std::invalid_argument
  // without delimiters or with an empty one.
  StepDetector(const std::vector<std::string>& delimiters, std::vector<std::string> token_bytes);

  // Reads one token. True if a delimiter ends in it and the step holds more than delimiters.
  // Matches do not overlap: each search starts afresh after the last match. An id past the table is
  // padding and has no text. After a boundary call open_step().
  bool feed(Cursor& cursor, Token token) const;

  // Starts a step: what the search has seen is kept, the counts are not.
  static Cursor open_step(const Cursor& cursor) { return Cursor{cursor.node, 0, 0}; }

  // The text of a token; ids past the table have none.
  const std::string& text(Token token) const;

 private:
  Automaton automaton_;
  std::vector<std::string> token_bytes_;
};

}  // namespace steer
