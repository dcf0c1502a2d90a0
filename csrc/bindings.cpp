// The Python bindings of the core. Only this file, sequence_bindings and exported_names.h know
// Python.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "exported_names.h"
#include "schedule/scheduler.h"
#include "sequence_bindings.h"

using namespace steer;

namespace {

// A numpy view of a plan buffer: no copy, keeps its owner alive, read-only for Python.
template <typename T>
py::array view(const std::vector<T>& buffer, std::vector<py::ssize_t> shape, py::handle owner) {
  py::array array(py::dtype::of<T>(), std::move(shape), buffer.data(), owner);
  array.attr("flags").attr("writeable") = false;
  return array;
}

template <typename T>
auto buffer(std::vector<T> Plan::* member) {
  return [member](py::object self) {
    const auto& data = self.cast<const Plan&>().*member;
    return view(data, {static_cast<py::ssize_t>(data.size())}, self);
  };
}

auto pairs(std::vector<std::int32_t> Plan::* member) {
  return [member](py::object self) {
    const auto& data = self.cast<const Plan&>().*member;
    return view(data, {static_cast<py::ssize_t>(data.size()) / 2, 2}, self);
  };
}

void bind_pool(py::module_& m) {
  py::class_<BlockPool>(m, "BlockPool")
      .def(py::init<SlabId, std::array<std::int32_t, kModels>>(), py::arg("slabs"),
           py::arg("slots"))
      .def("allocate", &BlockPool::allocate, py::arg("model"))
      .def("retain", &BlockPool::retain, py::arg("model"), py::arg("block"))
      .def("release", &BlockPool::release, py::arg("model"), py::arg("block"),
           py::arg("keep") = false)
      .def("revive", &BlockPool::revive, py::arg("model"), py::arg("block"))
      .def("drop", &BlockPool::drop, py::arg("model"), py::arg("block"))
      .def("cached", &BlockPool::cached, py::arg("model"))
      .def("reclaimable", &BlockPool::reclaimable, py::arg("model"))
      .def("fence", &BlockPool::fence, py::arg("model"), py::arg("block"), py::arg("tick"))
      .def("retire", &BlockPool::retire, py::arg("model"), py::arg("tick"))
      .def("reserve", &BlockPool::reserve, py::arg("slab"), py::arg("model"))
      .def("unreserve", &BlockPool::unreserve, py::arg("model"))
      .def("awaits_reserved", &BlockPool::awaits_reserved, py::arg("model"))
      .def("references", &BlockPool::references, py::arg("model"), py::arg("block"))
      .def("owner", &BlockPool::owner, py::arg("slab"))
      .def("available", &BlockPool::available, py::arg("model"))
      .def("live", &BlockPool::live, py::arg("model"))
      .def("owned", &BlockPool::owned, py::arg("model"))
      .def_property_readonly("free_slabs", &BlockPool::free_slabs)
      .def_property_readonly("lent", &BlockPool::lent)
      .def("check_integrity", &BlockPool::check_integrity);
}

void bind_detector(py::module_& m) {
  py::class_<StepDetector::Cursor>(m, "Cursor").def(py::init<>());
  py::class_<StepDetector>(m, "StepDetector")
      .def(py::init<const std::vector<std::string>&, std::vector<std::string>>(),
           py::arg("delimiters"), py::arg("token_bytes"))
      .def(
          "feed",
          [](const StepDetector& self, StepDetector::Cursor& cursor, Token token) {
            const bool boundary = self.feed(cursor, token);
            if (boundary) cursor = StepDetector::open_step(cursor);
            return boundary;
          },
          py::arg("cursor"), py::arg("token"),
          "True if a delimiter ends in the token and the step holds more; then opens a step.");
}

void bind_plan(py::module_& m) {
  py::class_<Plan>(m, "Plan")
      .def_readonly("sequences", &Plan::sequences)
      .def_readonly("rows", &Plan::rows)
      .def_readonly("draws", &Plan::draws)
      .def_readonly("tick", &Plan::tick)
      .def_readonly("in_flight", &Plan::in_flight)
      .def_readonly("short_of_memory", &Plan::short_of_memory)
      .def_property_readonly("tokens", buffer(&Plan::tokens))
      .def_property_readonly("positions", buffer(&Plan::positions))
      .def_property_readonly("slots", buffer(&Plan::slots))
      .def_property_readonly("starts", buffer(&Plan::starts))
      .def_property_readonly("contexts", buffer(&Plan::contexts))
      .def_property_readonly("samples", buffer(&Plan::samples))
      .def_property_readonly("guesses", buffer(&Plan::guesses))
      .def_property_readonly("attempts", buffer(&Plan::attempts))
      .def_property_readonly("ids", buffer(&Plan::ids))
      .def_readonly("copied", &Plan::copied)
      .def_readonly("saved", &Plan::saved)
      .def_readonly("restored", &Plan::restored)
      .def_property_readonly("copies", pairs(&Plan::copies))
      .def_property_readonly("saves", pairs(&Plan::saves))
      .def_property_readonly("restores", pairs(&Plan::restores))
      .def_property_readonly("blocks", [](py::object self) {
        const auto& plan = self.cast<const Plan&>();
        const py::ssize_t width = plan.table_width;
        return view(plan.blocks, {static_cast<py::ssize_t>(plan.blocks.size()) / width, width},
                    self);
      });
}

Scheduler make_scheduler(
    SlabId slabs, std::array<std::int32_t, kModels> slots, std::int32_t block_tokens,
    std::int32_t max_context, std::int32_t max_sequences, std::int32_t max_waiting,
    std::int32_t max_tick_tokens, std::array<double, kModels> recompute_cost, bool prefix_cache,
    std::array<std::int32_t, kModels> background, const std::string& lane_policy,
    std::int32_t gather, std::int32_t hold_ticks, std::int32_t automatic_from,
    std::array<double, kModels> tick_cost, std::array<double, kModels> lane_weight,
    std::int32_t host_blocks, bool eager_admission, std::int32_t max_drawn_rows,
    const std::vector<std::string>& delimiters, std::vector<std::string> token_bytes,
    std::vector<std::string> large_token_bytes) {
  const auto policy = named<LanePolicy>(kLanePolicyNames, lane_policy, "lane policy");
  const LaneSettings lanes{policy, gather, hold_ticks, automatic_from, tick_cost, lane_weight};
  return Scheduler({slabs, slots, block_tokens, max_context, max_sequences, max_waiting,
                    max_tick_tokens, recompute_cost, prefix_cache, background, lanes, host_blocks,
                    eager_admission, max_drawn_rows},
                   delimiters, std::move(token_bytes), std::move(large_token_bytes));
}

SequenceId add_request(Scheduler& self, std::vector<Token> prompt, std::int32_t max_tokens,
                       std::vector<Token> stop_ids, int reader, std::int32_t priority,
                       bool settle_at_once, std::vector<std::string> stop_strings,
                       std::int32_t min_tokens, std::int32_t max_step_tokens,
                       std::int32_t trial_tokens, std::vector<Token> think_end, bool think_closed,
                       std::int32_t max_think_tokens, std::int32_t max_repeats, bool ahead,
                       bool ask_at_end, bool relay, bool audited, int scored,
                       std::int32_t draft_tokens, const std::string& draft_source, bool verified,
                       bool finishes_step, std::int32_t samples) {
  return self.add({std::move(prompt),
                   max_tokens,
                   std::move(stop_ids),
                   reader,
                   priority,
                   settle_at_once,
                   std::move(stop_strings),
                   min_tokens,
                   max_step_tokens,
                   trial_tokens,
                   std::move(think_end),
                   think_closed,
                   max_think_tokens,
                   max_repeats,
                   ahead,
                   ask_at_end,
                   relay,
                   kSmall,
                   audited,
                   scored,
                   draft_tokens,
                   named<DraftSource>(kDraftSourceNames, draft_source, "draft source"),
                   verified,
                   finishes_step},
                  samples);
}

void commit(Scheduler& self, int lane, const Int32Array& sampled) {
  if (sampled.ndim() != 1) throw std::invalid_argument("sampled must have one dimension");
  self.commit(lane, {sampled.data(), static_cast<std::size_t>(sampled.size())});
}

py::list take_events(Scheduler& self) {
  py::list out;
  for (const Event& event : self.take_events()) out.append(event_tuple(event));
  return out;
}

py::dict counters(const Scheduler& self) {
  const Counters& c = self.counters();
  py::dict out;
  out["admitted"] = c.admitted;
  out["preemptions"] = c.preemptions;
  out["suspended"] = c.suspended;
  out["guarded"] = self.guarded();
  out["lost_rows"] = c.lost_rows;
  out["recomputed"] = c.recomputed;
  out["ticks"] = c.ticks;
  out["hits"] = c.hits;
  out["evictions"] = c.evictions;
  out["shared"] = c.shared;
  out["copied"] = c.copied;
  out["background"] = c.background;
  out["held"] = c.held;
  out["ahead"] = c.ahead;
  out["voided"] = c.voided;
  out["saved"] = c.saved;
  out["restored"] = c.restored;
  out["lent_slabs"] = self.pool().lent();
  return out;
}

void bind_scheduler(py::module_& m) {
  py::class_<Scheduler>(m, "Scheduler")
      .def(py::init(&make_scheduler), py::kw_only(), py::arg("slabs"), py::arg("slots"),
           py::arg("block_tokens"), py::arg("max_context"), py::arg("max_sequences"),
           py::arg("max_waiting") = 0, py::arg("max_tick_tokens"),
           py::arg("recompute_cost") = std::array<double, kModels>{1.0, 1.0},
           py::arg("prefix_cache") = false,
           py::arg("background") = std::array<std::int32_t, kModels>{0, 0},
           py::arg("lane_policy") = "latency", py::arg("gather") = 0, py::arg("hold_ticks") = 32,
           py::arg("automatic_from") = 4,
           py::arg("tick_cost") = std::array<double, kModels>{1.0, 1.0},
           py::arg("lane_weight") = std::array<double, kModels>{1.0, 1.0},
           py::arg("host_blocks") = 0, py::arg("eager_admission") = false,
           py::arg("max_drawn_rows") = 0, py::arg("delimiters"), py::arg("token_bytes"),
           py::arg("large_token_bytes") = std::vector<std::string>{})
      .def("add", &add_request, py::arg("prompt"), py::kw_only(), py::arg("max_tokens"),
           py::arg("stop_ids") = std::vector<Token>{}, py::arg("reader") = kNobody,
           py::arg("priority") = 0, py::arg("settle_at_once") = true,
           py::arg("stop_strings") = std::vector<std::string>{}, py::arg("min_tokens") = 0,
           py::arg("max_step_tokens") = 0, py::arg("trial_tokens") = 0,
           py::arg("think_end") = std::vector<Token>{}, py::arg("think_closed") = false,
           py::arg("max_think_tokens") = 0, py::arg("max_repeats") = 0, py::arg("ahead") = true,
           py::arg("ask_at_end") = false, py::arg("relay") = false, py::arg("audited") = false,
           py::arg("scored") = kNobody, py::arg("draft_tokens") = 0,
           py::arg("draft_source") = "small", py::arg("verified") = false,
           py::arg("finishes_step") = false, py::arg("samples") = 1)
      .def("plan", &Scheduler::plan, py::arg("lane"), py::arg("ahead") = false)
      .def("standing", &Scheduler::standing, py::arg("lane"))
      .def("buffers", &Scheduler::buffers, py::arg("lane"), py::arg("index") = 0,
           py::return_value_policy::reference_internal)
      .def("fail", &Scheduler::fail, py::arg("lane"))
      .def("commit", &commit, py::arg("lane"), py::arg("sampled"))
      .def("route", &Scheduler::route, py::arg("id"), py::arg("model"), py::arg("rest") = false,
           py::arg("unread") = false)
      .def("add_shadow", &Scheduler::add_shadow, py::arg("id"), py::kw_only(), py::arg("prompt"),
           py::arg("stop_ids") = std::vector<Token>{}, py::arg("think_end") = std::vector<Token>{})
      .def("shadow_of", py::overload_cast<SequenceId>(&Scheduler::shadow_of, py::const_),
           py::arg("id"))
      .def("cross", &Scheduler::cross, py::arg("id"), py::arg("tokens"), py::arg("unread") = false)
      .def(
          "cross_back",
          [](Scheduler& self, SequenceId id, const std::vector<Token>& tokens, int end) {
            self.cross_back(id, tokens, static_cast<Finish>(end));
          },
          py::arg("id"), py::arg("tokens"), py::arg("end") = static_cast<int>(Finish::none))
      .def("truncate", &Scheduler::truncate, py::arg("id"), py::arg("length"))
      .def("settle", &Scheduler::settle, py::arg("id"), py::arg("length"))
      .def("preempt", &Scheduler::preempt, py::arg("id"))
      .def(
          "abort",
          [](Scheduler& self, SequenceId id, bool deadline) {
            self.abort(id, deadline ? Finish::deadline : Finish::abort);
          },
          py::arg("id"), py::arg("deadline") = false)
      .def("forget", &Scheduler::forget, py::arg("id"))
      .def("take_events", &take_events)
      .def("sequence", &Scheduler::sequence, py::arg("id"), py::return_value_policy::copy)
      .def("view", &view_sequence, py::arg("id"), py::keep_alive<0, 1>())
      .def("tokens_since", &tokens_since, py::arg("id"), py::arg("position"), py::arg("limit") = -1)
      .def("steps_since", &steps_since, py::arg("id"), py::arg("index"))
      .def("news", &news, py::arg("id"), py::arg("since"))
      .def("counters", &counters)
      .def_property_readonly("pool", &Scheduler::pool, py::return_value_policy::reference_internal)
      .def_property_readonly("host_used",
                             [](const Scheduler& s) { return s.host().total() - s.host().free(); })
      .def_property_readonly("longest", &Scheduler::longest)
      .def_property_readonly("limit", &Scheduler::limit)
      .def_property_readonly("running", &Scheduler::running)
      .def_property_readonly("waiting", &Scheduler::waiting)
      .def("check_integrity", &Scheduler::check_integrity);
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "The Torch-free core: block pool, step detector, scheduler.";
  bind_names(m);
  bind_pool(m);
  bind_detector(m);
  bind_plan(m);
  bind_sequence(m);
  bind_scheduler(m);
}
