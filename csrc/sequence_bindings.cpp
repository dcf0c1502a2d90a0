#include "sequence_bindings.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <functional>
#include <span>

namespace steer {

namespace {

// int64 [models, row kinds, (rows, keys)]
py::array_t<std::int64_t> rows_array(const std::array<RowCounts, kModels>& rows) {
  py::array_t<std::int64_t> out({kModels, kRowKinds, 2});
  auto at = out.mutable_unchecked<3>();
  for (int m = 0; m < kModels; ++m)
    for (int k = 0; k < kRowKinds; ++k) {
      at(m, k, 0) = rows[m][k].rows;
      at(m, k, 1) = rows[m][k].keys;
    }
  return out;
}

py::array_t<std::int64_t> entries_array(const Usage& usage) {
  py::array_t<std::int64_t> out({kModels, 2});
  auto at = out.mutable_unchecked<2>();
  for (int m = 0; m < kModels; ++m) {
    at(m, 0) = usage.entries[m].rows;
    at(m, 1) = usage.entries[m].keys;
  }
  return out;
}

py::dict speculation_dict(const SpeculationCounts& counts) {
  py::dict out;
  out["passes"] = counts.passes;
  out["tokens"] = counts.tokens;
  out["rounds"] = counts.rounds;
  out["drafted"] = counts.drafted;
  out["looked_up"] = counts.looked_up;
  out["reused"] = counts.reused;
  out["compared"] = counts.compared;
  out["accepted"] = counts.accepted;
  out["accepted_at"] = counts.accepted_at;
  return out;
}

const Sequence& seen(const Sequence& sequence) { return sequence; }
const Sequence& seen(const SequenceView& view) { return view.scheduler->sequence(view.id); }

// What of a sequence has a fixed size.
template <typename T>
void bind_facts(py::class_<T>& bound) {
  const auto fact = [&bound](const char* name, auto read) {
    bound.def_property_readonly(name, [read](const T& s) { return std::invoke(read, seen(s)); });
  };
  fact("id", &Sequence::id);
  fact("shadow", &Sequence::shadow);
  fact("length", &Sequence::length);
  fact("prompt_length", &Sequence::prompt_length);
  fact("settled", &Sequence::settled);
  fact("computed", &Sequence::computed);
  fact("in_flight", &Sequence::in_flight);
  fact("ahead",
       [](const Sequence& s) { return std::array{s.ahead[kSmall].rows, s.ahead[kLarge].rows}; });
  fact("draft", &Sequence::draft);
  fact("replaced", &Sequence::replaced);
  fact("finishing_step", [](const Sequence& s) { return s.is_finishing_step(); });
  fact("drafting", [](const Sequence& s) { return s.round.open; });
  fact("speculation", [](const Sequence& s) { return speculation_dict(s.usage.speculation); });
  fact("active", &Sequence::active);
  fact("awaits_route", &Sequence::awaits_route);
  fact("reading", &Sequence::reading);
  fact("away", &Sequence::away);
  fact("suspended", &Sequence::suspended);
  fact("candidate", &Sequence::candidate);
  fact("attempt", &Sequence::attempt);
  fact("sample", &Sequence::sample);
  fact("trial_from", &Sequence::trial_from);
  fact("thinking", &Sequence::thinking);
  fact("closing", [](const Sequence& s) { return s.closing != Finish::none; });
  fact("decision_wait", [](const Sequence& s) { return s.usage.decision_wait; });
  fact("cut_bytes", &Sequence::cut_bytes);
  fact("times", [](const Sequence& s) {
    return std::array{s.times.queued, s.times.started, s.times.first_token, s.times.ended};
  });
  fact("phase", [](const Sequence& s) { return static_cast<int>(s.phase); });
  fact("finish", [](const Sequence& s) { return static_cast<int>(s.finish); });
  fact("rows", [](const Sequence& s) { return rows_array(s.usage.rows); });
  fact("spared", [](const Sequence& s) { return rows_array(s.usage.spared); });
  fact("cached", [](const Sequence& s) { return s.usage.cached; });
  fact("restored", [](const Sequence& s) { return s.usage.restored; });
  fact("entries", [](const Sequence& s) { return entries_array(s.usage); });
}

Steps steps_between(std::span<const Step> steps) {
  Steps out;
  for (const Step& step : steps) out.emplace_back(step.start, step.model);
  return out;
}

Int32Array tokens_of(std::span<const Token> tokens) {
  return Int32Array(static_cast<py::ssize_t>(tokens.size()), tokens.data());
}

}  // namespace

SequenceView view_sequence(const Scheduler& self, SequenceId id) {
  return {&self, self.sequence(id).id};
}

Int32Array tokens_since(const Scheduler& self, SequenceId id, std::int32_t position,
                        std::int32_t limit) {
  if (position < 0) throw std::invalid_argument("position must be at least 0");
  const std::span<const Token> tokens = self.sequence(id).tokens;
  const auto rest = tokens.subspan(std::min<std::size_t>(position, tokens.size()));
  return tokens_of(limit < 0 ? rest : rest.first(std::min<std::size_t>(limit, rest.size())));
}

Steps steps_since(const Scheduler& self, SequenceId id, std::size_t index) {
  const std::span<const Step> steps = self.sequence(id).steps;
  return steps_between(steps.subspan(std::min(index, steps.size())));
}

News news(const Scheduler& self, SequenceId id, std::int32_t since) {
  const Sequence& s = self.sequence(id);
  const std::int32_t start = std::max(since, s.prompt_length()), end = std::max(start, s.settled);
  const auto from = [&](std::int32_t at) {
    return std::lower_bound(
        s.steps.begin(), s.steps.end(), at,
        [](const Step& step, std::int32_t place) { return step.start < place; });
  };
  return {start, end, tokens_since(self, id, start, end - start),
          steps_between({from(start), from(end)})};
}

void bind_sequence(py::module_& m) {
  py::class_<SequenceView> view(m, "SequenceView");
  bind_facts(view);
  view.def(
      "kept_since",
      [](const SequenceView& v, std::int32_t attempt) { return seen(v).kept_since(attempt); },
      py::arg("attempt"));
  view.def_property_readonly("step_start", [](const SequenceView& v) {
    return seen(v).steps.empty() ? -1 : seen(v).steps.back().start;
  });
  py::class_<Sequence> copy(m, "Sequence");
  bind_facts(copy);
  copy.def_property_readonly("tokens", [](const Sequence& s) { return tokens_of(s.tokens); })
      .def_readonly("forced", &Sequence::forced)
      .def_property_readonly("steps", [](const Sequence& s) { return steps_between(s.steps); });
  py::class_<News>(m, "News")
      .def_readonly("start", &News::start)
      .def_readonly("settled", &News::settled)
      .def_readonly("tokens", &News::tokens)
      .def_readonly("steps", &News::steps);
}

}  // namespace steer
