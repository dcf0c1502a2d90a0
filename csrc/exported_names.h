// What both languages know: the core's numbers, the names of its enumerations, and its events.
// Python writes none of them down.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <stdexcept>
#include <string>

#include "schedule/lane_policy.h"
#include "schedule/sequence.h"
#include "types.h"

namespace steer {

namespace py = pybind11;

// A tuple (kind, sequence, row) whose entries have names. `shadow` has only a name, as have the
// last fields of os.stat_result: it neither unpacks nor compares.
inline PyTypeObject* event_type() {
  static PyStructSequence_Field fields[] = {
      {"kind", "number of an EventKind"},
      {"sequence", "id of the request's sequence"},
      {"row", "of the plan, whose logits describe the boundary; -1: none"},
      {"shadow", "whether its shadow decides or has finished, not the sequence itself"},
      {nullptr, nullptr}};
  static PyStructSequence_Desc event{"engine._core.Event", "What take_events() gives.", fields, 3};
  static PyTypeObject* const type = PyStructSequence_NewType(&event);
  if (!type) throw py::error_already_set();
  return type;
}

inline py::object event_tuple(const Event& event) {
  auto entry = py::reinterpret_steal<py::object>(PyStructSequence_New(event_type()));
  if (!entry) throw py::error_already_set();
  const auto set = [&](py::ssize_t field, py::object value) {
    PyStructSequence_SetItem(entry.ptr(), field, value.release().ptr());
  };
  set(0, py::int_(static_cast<int>(event.kind)));
  set(1, py::int_(event.sequence));
  set(2, py::int_(event.row));
  set(3, py::bool_(event.shadow));
  return entry;
}

// An enum.IntEnum with these names, numbered from 0.
template <std::size_t size>
void bind_enum(py::module_& m, const char* name, const std::array<const char*, size>& names) {
  py::list members;
  for (std::size_t i = 0; i < size; ++i) members.append(py::make_tuple(names[i], i));
  m.attr(name) = py::module_::import("enum").attr("IntEnum")(
      name, members, py::arg("module") = m.attr("__name__"));
}

// The enumerator with this name. Throws std::invalid_argument that names all of them.
template <typename Enumeration, std::size_t size>
Enumeration named(const std::array<const char*, size>& names, const std::string& name,
                  const std::string& what) {
  const auto found = std::ranges::find(names, name);
  if (found != names.end()) return static_cast<Enumeration>(found - names.begin());
  std::string known;
  for (const char* each : names) known.append(known.empty() ? "" : ", ").append(each);
  throw std::invalid_argument("unknown " + what + " '" + name + "'; known: " + known);
}

inline void bind_names(py::module_& m) {
  m.attr("SMALL") = kSmall;
  m.attr("LARGE") = kLarge;
  m.attr("NOBODY") = kNobody;
  m.attr("WHOLE_ANSWER") = kWholeAnswer;
  m.attr("MOST_DRAFTS") = kMostDrafts;
  bind_enum(m, "RowKind", kRowKindNames);
  bind_enum(m, "Finish", kFinishNames);
  bind_enum(m, "Phase", kPhaseNames);
  bind_enum(m, "EventKind", kEventKindNames);
  m.attr("ROW_KINDS") = py::tuple(py::cast(kRowKindNames));
  m.attr("FINISH_REASONS") = py::tuple(py::cast(kFinishNames));
  m.attr("LANE_POLICIES") = py::tuple(py::cast(kLanePolicyNames));
  m.attr("DRAFT_SOURCES") = py::tuple(py::cast(kDraftSourceNames));
  m.attr("Event") = py::reinterpret_borrow<py::object>(reinterpret_cast<PyObject*>(event_type()));
}

}  // namespace steer
