// What Python sees of a sequence: facts of a fixed size, and copies of new tails only.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <utility>
#include <vector>

#include "schedule/scheduler.h"

namespace steer {

namespace py = pybind11;

using Int32Array = py::array_t<std::int32_t, py::array::c_style | py::array::forcecast>;
using Steps = std::vector<std::pair<std::int32_t, int>>;  // start, model

// A sequence that is looked at where it stands: it holds no memory of the core.
struct SequenceView {
  const Scheduler* scheduler;
  SequenceId id;
};

// What has settled of an answer since a position, for a stream.
struct News {
  std::int32_t start, settled;
  Int32Array tokens;  // [start, settled)
  Steps steps;        // that start there
};

SequenceView view_sequence(const Scheduler& self, SequenceId id);

// A copy of at most `limit` tokens from `position` on; -1: all. None if it is past the end.
Int32Array tokens_since(const Scheduler& self, SequenceId id, std::int32_t position,
                        std::int32_t limit);

// The steps from number `index` on.
Steps steps_since(const Scheduler& self, SequenceId id, std::size_t index);

// From `since` on, or from the prompt's end if that comes later.
News news(const Scheduler& self, SequenceId id, std::int32_t since);

void bind_sequence(py::module_& m);

}  // namespace steer
