// A text: the list of its tokens, and what was read from them.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "request.h"
#include "text/automaton.h"
#include "text/loop_guard.h"
#include "text/step_detector.h"
#include "types.h"

namespace steer {

// What a token does to the text: ends it, or ends a step.
struct Outcome {
  Finish end = Finish::none;
  bool boundary = false;
};

// How far a text is read: all that is kept from one token to the next.
struct ReadingState {
  StepDetector::Cursor cursor;
  std::int32_t stop_node = Automaton::kStart;
  std::int32_t think_node = Automaton::kStart;
  bool thinking = false;  // think_end has not come yet
};

struct Step {
  std::int32_t start;   // first token of the step
  int model;            // the model that writes it
  ReadingState opened;  // where the step opens
};

struct TextState : ReadingState {
  std::vector<Token> tokens;
  std::int32_t settled = 0;  // tokens that can no longer be taken back
  // Boundaries from here to the end of the thinking part are not read; -1: all are.
  std::int32_t unread_from = -1;
  std::vector<Step> steps;
  Request request;
  std::shared_ptr<const Automaton> stops;  // of the stop strings, if any
  std::int32_t cut_bytes = 0;              // of the text's end, from where a stop string began
  std::shared_ptr<const Automaton> think_marker;  // of its text; none: it is found by its ids
  std::vector<std::int32_t> forced;    // positions of tokens that no model drew, ascending
  std::vector<std::int32_t> replaced;  // positions where no guess stood, ascending
  LoopGuard loops;

  std::int32_t length() const { return static_cast<std::int32_t>(tokens.size()); }
  std::int32_t prompt_length() const { return static_cast<std::int32_t>(request.prompt.size()); }
  std::int32_t generated() const { return length() - prompt_length(); }
  std::span<const Token> first(std::int32_t count) const {
    return {tokens.data(), static_cast<std::size_t>(count)};
  }
  std::span<const Token> written() const {
    return std::span(tokens).subspan(request.prompt.size());
  }
  // `model` writes a step from here on.
  void open_step(int model) {
    cursor = StepDetector::open_step(cursor);
    steps.push_back({length(), model, *this});
  }
  // Does the large model write on to the step's end, as a guess in it did not stand?
  bool is_finishing_step() const {
    return request.finishes_step && !replaced.empty() && replaced.back() >= steps.back().start;
  }
  // The open step has no token and goes: the one before it was the last.
  void drop_empty_step() {
    cursor = steps.back().opened.cursor;
    steps.pop_back();
  }
  // Must think_end be written now, or `more` tokens later, if it has not come by then?
  bool must_stop_thinking(std::int32_t more = 0) const {
    const std::int32_t limit = request.max_think_tokens;
    return thinking && limit > 0 && generated() + more >= limit;
  }
};

}  // namespace steer
