// The Python bindings of the CPU kernels: addresses and sizes, which kernels/cpu.py has checked.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "decoder.h"
#include "draw.h"
#include "instruction_sets.h"

namespace py = pybind11;
using namespace steer::cpu;

namespace {

using Address = std::uintptr_t;

template <typename T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

Layer make_layer(const std::vector<Address>& w) {
  if (w.size() != kLayerWeights.size())
    throw std::invalid_argument("a layer has " + std::to_string(kLayerWeights.size()) +
                                " addresses");
  const auto in = [&](int i) { return at<const void>(w[i]); };
  return {in(0), in(1), in(2), in(3), in(4), in(5), in(6), in(7), in(8), in(9), in(10), in(11)};
}

// sizes: as in Shape, then positions; weights: embedding, norm, head, turns.
std::unique_ptr<Decoder> decoder(bool half, const std::string& instruction_set, int threads,
                                 const std::array<std::int64_t, 8>& sizes, float eps,
                                 const std::array<Address, 4>& weights,
                                 const std::vector<std::vector<Address>>& layers) {
  const Shape shape{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6], eps};
  Weights found{at<const void>(weights[0]),
                at<const void>(weights[1]),
                at<const void>(weights[2]),
                at<const float>(weights[3]),
                sizes[7],
                {}};
  for (const auto& layer : layers) found.layers.push_back(make_layer(layer));
  return make_decoder(half, instruction_set, threads, shape, std::move(found));
}

// batch and sizes: as in Batch; layout: as in Layout.
void forward(Decoder& self, const std::array<Address, 7>& batch,
             const std::array<std::int64_t, 5>& sizes, const std::array<std::int64_t, 4>& layout,
             Address arena, Address logits, Address hidden) {
  const auto in = [&](int i) { return at<const std::int32_t>(batch[i]); };
  const Batch tick{in(0), in(1),    in(2),    in(3),    in(4),    in(5),
                   in(6), sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]};
  self.forward(tick, {layout[0], layout[1], layout[2], layout[3]}, at<void>(arena),
               at<float>(logits), at<void>(hidden));
}

void head(Decoder& self, Address hidden, std::int64_t rows, Address logits) {
  self.head(at<const void>(hidden), rows, at<float>(logits));
}

// Statistics of rows of logits: floats [kStatistics, rows], ids int64 [rows], valid uint8 [rows].
void confidence(const std::string& instruction_set, Address logits, std::int64_t rows,
                std::int64_t stride, std::int64_t vocabulary, Address floats, Address ids,
                Address valid) {
  const auto& kernel = kernels(instruction_set);
  for (std::int64_t row = 0; row < rows; ++row) {
    Statistics found;
    kernel.confidence(at<const float>(logits) + row * stride, vocabulary, found);
    const float values[] = {found.entropy, found.max_prob,  found.log_odds,
                            found.margin,  found.max_logit, found.logsumexp};
    static_assert(std::size(values) == std::size(kStatistics));
    for (std::size_t i = 0; i < std::size(values); ++i)
      at<float>(floats)[i * rows + row] = values[i];
    at<std::int64_t>(ids)[row] = found.argmax;
    at<std::uint8_t>(valid)[row] = found.valid;
  }
}

// How rows draw. columns: temperature fp64, key int64, counter int64 [rows, 3], and null where no
// row has the filter: top_k int64, top_p fp64, min_p fp64.
struct DrawColumns {
  explicit DrawColumns(const std::array<Address, 6>& columns)
      : temperature(at<const double>(columns[0])),
        key(at<const std::uint64_t>(columns[1])),
        counter(at<const std::uint64_t>(columns[2])),
        top_k(at<const std::int64_t>(columns[3])),
        top_p(at<const double>(columns[4])),
        min_p(at<const double>(columns[5])) {}

  RaceKey key_of(std::int64_t row) const {
    const auto part = [&](int i) { return static_cast<std::uint32_t>(counter[3 * row + i]); };
    return {key[row], {part(0), part(1), part(2)}, temperature[row]};
  }
  Filters filters_of(std::int64_t row) const {
    return {top_k ? top_k[row] : 0, top_p ? top_p[row] : 1, min_p ? min_p[row] : 0};
  }

  const double* temperature;
  const std::uint64_t *key, *counter;
  const std::int64_t* top_k;
  const double *top_p, *min_p;
};

// A token of each row, int64 [rows]; `wide`: logits are fp64, else fp32.
void draw_rows(const std::string& instruction_set, bool wide, Address logits, std::int64_t rows,
               std::int64_t stride, std::int64_t vocabulary, const std::array<Address, 6>& columns,
               Address tokens) {
  const auto& kernel = kernels(instruction_set);
  const DrawColumns how(columns);
  for (std::int64_t row = 0; row < rows; ++row) {
    const auto drawn = [&](const auto* z) {
      return draw(kernel, z + row * stride, vocabulary, how.key_of(row), how.filters_of(row));
    };
    at<std::int64_t>(tokens)[row] =
        wide ? drawn(at<const double>(logits)) : drawn(at<const float>(logits));
  }
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "CPU kernels. Addresses are not checked here: kernels/cpu.py does.";
  m.attr("LAYER_WEIGHTS") = py::tuple(py::cast(kLayerWeights));
  m.attr("STATISTICS") = py::tuple(py::cast(std::to_array(kStatistics)));
  m.attr("LONGEST_HEAD") = kLongestHead;
  m.attr("QUERY_ROWS") = kQueryRows;
  m.def("instruction_sets", &instruction_sets);
  m.def("confidence", &confidence, py::call_guard<py::gil_scoped_release>());
  m.def("draw", &draw_rows, py::call_guard<py::gil_scoped_release>());
  py::class_<Decoder>(m, "Decoder")
      .def(py::init(&decoder))
      .def("forward", &forward, py::call_guard<py::gil_scoped_release>())
      .def("head", &head, py::call_guard<py::gil_scoped_release>());
}
