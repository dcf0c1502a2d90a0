// What a token does to the text: it may end a step, the thinking part or the text.
//
// The text ends at a stop token or a stop string, in a loop, or at its longest. A step ends at a
// delimiter, at its longest, and where the thinking part ends. What follows from that (which model
// writes on, what the caller is asked) is decided by the scheduler.
#pragma once

#include <array>
#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "text/step_detector.h"
#include "text/text_state.h"
#include "types.h"

namespace steer {

// Immutable and shared by all texts. Token ids are those of the vocabulary of the text's request.
class TextReader {
 public:
  // The text of each token id, for both vocabularies; see StepDetector.
  TextReader(const std::vector<std::string>& delimiters, std::vector<std::string> token_bytes,
             std::vector<std::string> large_token_bytes);

  // The text before its first token: the prompt, settled. `stops` searches the request's stop
  // strings if another text does so already.
  TextState begin(Request request, std::shared_ptr<const Automaton> stops = nullptr) const;
  // Appends a token and reads it.
  Outcome append(TextState& text, Token token) const;
  // If the text went on with `guesses`: how many of them it takes until it ends, or goes on with
  // tokens that no model draws, or, with `asked`, until a step ends; none: it goes on after all of
  // them. Leaves the text as it is.
  std::optional<std::size_t> first_pause(TextState& text, std::span<const Token> guesses,
                                         bool asked) const;
  // Writes the tokens that end the thinking part, until it has ended: the text before may already
  // hold the first of them. Boundaries within them do not count.
  Outcome end_thinking(TextState& text) const;
  // Settles all but the tokens that may yet turn out to belong to a stop string.
  void settle_open(TextState& text) const;

  // Takes back tokens[length:], of which none belongs to the prompt, as if they had never been
  // read. Returns the first step that was taken back, or the last step if it was only cut.
  Step cut(TextState& text, std::int32_t length) const;

 private:
  const std::string& bytes(const TextState& text, Token token) const {
    return detectors_[text.request.vocabulary].text(token);
  }
  std::shared_ptr<const Automaton> think_marker(const Request& request) const;
  bool ends_thinking(TextState& text, std::span<const Token> written) const;
  bool stops_at(TextState& text, Token token) const;
  bool match_stop(TextState& text, Token token, bool ignored) const;
  void read_step_again(TextState& text) const;

  std::array<StepDetector, kModels> detectors_;  // of each vocabulary
};

}  // namespace steer
