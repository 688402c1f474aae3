// Shows csrc/common to pytest, so that what kernels on a GPU compute with is tested on the CPU.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "../common/gemm.h"
#include "../common/half.h"
#include "../common/layout.h"
#include "../common/pixels.h"
#include "../common/reduction.h"
#include "../common/rows.h"

namespace py = pybind11;
using namespace wuskern;

namespace {

template <typename T>
float widen_bits(uint16_t bits) {
  return widen(T{bits});
}

template <typename T>
uint16_t narrow_bits(float x) {
  T out;
  narrow(x, &out);
  return out.bits;
}

py::object fold_layout(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides, int64_t dim) {
  const auto layout = fold(sizes.data(), strides.data(), static_cast<int64_t>(sizes.size()), dim);
  return layout ? py::cast(*layout) : py::none();
}

py::object fold_layout_in_order(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides, int64_t dim) {
  const auto layout = fold_in_order(sizes.data(), strides.data(), static_cast<int64_t>(sizes.size()), dim);
  return layout ? py::cast(*layout) : py::none();
}

template <typename Key>
std::pair<Key, int64_t> threshold_of(const std::vector<Key>& keys, int64_t k) {
  std::vector<Key> scratch(keys.size());
  const Threshold<Key> last = threshold(keys.data(), static_cast<int64_t>(keys.size()), k, scratch.data());
  return {last.key, last.ties};
}

template <typename Key>
void show_buckets(py::module_& m, const char* name) {
  using B = Buckets<Key>;
  py::class_<B>(m, name)
      .def(py::init<Key, Key>())
      .def("count", &B::count)
      .def("of", &B::of)
      .def("of_one_key", &B::of_one_key)
      .def("first", &B::first)
      .def("last", &B::last);
}

double fold_tree_of_eight(const std::vector<double>& values) {
  double lane[8];
  std::copy_n(values.begin(), 8, lane);
  return fold_tree<8>(lane);
}

std::vector<std::pair<int64_t, int64_t>> walk(int64_t vectors, int64_t start, int64_t step, int64_t steps) {
  std::vector<std::pair<int64_t, int64_t>> visited;
  for (PlaneWalk w(vectors, start, step); steps > 0; --steps, w.advance()) visited.emplace_back(w.outer, w.vector);
  return visited;
}

using Places = std::vector<std::array<int64_t, 3>>;

Places walk_pixels(int64_t height, int64_t width, int64_t start, int64_t step, int64_t steps) {
  Places visited;
  for (PixelWalk w(height, width, start, step); steps > 0; --steps, w.advance()) {
    visited.push_back({w.at.image, w.at.y, w.at.x});
  }
  return visited;
}

// Which tile a block sums, and from which step to which: (group, feature block, row block, first, last).
std::vector<std::array<int64_t, 5>> wgrad_blocks(const WgradSchedule& schedule) {
  std::vector<std::array<int64_t, 5>> all;
  for (int64_t block = 0; block < schedule.blocks(); ++block) {
    const auto [group, feature_block, row_block, split] = schedule.at(block);
    all.push_back({group, feature_block, row_block, schedule.first_step(split), schedule.first_step(split + 1)});
  }
  return all;
}

std::vector<std::array<int64_t, 4>> dgrad_blocks(const DgradSchedule& schedule) {
  std::vector<std::array<int64_t, 4>> all;
  for (int64_t block = 0; block < schedule.blocks(); ++block) {
    const auto [pixel_block, column_block, group, phase] = schedule.at(block);
    all.push_back({phase, group, pixel_block, column_block});
  }
  return all;
}

void bind_products(py::module_& m) {
  m.def("quotient", [](uint32_t n, int64_t by) { return Divisor(by).quotient(n); });
  m.def("walk_pixels", &walk_pixels, py::arg("height"), py::arg("width"), py::arg("start"), py::arg("step"),
        py::arg("steps"));

  m.attr("tile_m") = kTileM;
  m.attr("tile_depth") = kTileDepth;
  m.attr("widest_tile") = kWidestTile;
  m.def("tile_shared_bytes", [](int n) { return tile_shared_bytes(n); });
  m.def("tile_blocks", [](int n, bool wgmma) { return tile_blocks(n, wgmma); });
  py::class_<Gpu>(m, "Gpu")
      .def(py::init<int, int64_t, bool>(), py::arg("capability"), py::arg("processors"), py::arg("wgmma"))
      .def("shared_bytes", &Gpu::shared_bytes)
      .def("blocks", &Gpu::blocks);
  m.def("wgrad_tile", &wgrad_tile, py::arg("k"), py::arg("gpu"));
  m.def("wgrad_columns", &wgrad_columns, py::arg("k"), py::arg("gpu"));
  m.def("tile_of_columns", &tile_of_columns, py::arg("columns"));
  m.def("dgrad_tile", &dgrad_tile, py::arg("m"), py::arg("columns"), py::arg("terms"), py::arg("others"),
        py::arg("gpu"));

  py::class_<WgradSchedule>(m, "WgradSchedule")
      .def(py::init<int64_t, int64_t, int64_t, int64_t, int64_t>(), py::arg("groups"), py::arg("feature_blocks"),
           py::arg("row_blocks"), py::arg("steps"), py::arg("splits"))
      .def_readonly("steps", &WgradSchedule::steps)
      .def_readonly("splits", &WgradSchedule::splits)
      .def_readonly("feature_blocks", &WgradSchedule::feature_blocks)
      .def_readonly("row_blocks", &WgradSchedule::row_blocks)
      .def("blocks", &WgradSchedule::blocks);
  m.def("wgrad_blocks", &wgrad_blocks);
  m.def("blocks_join", &blocks_join, py::arg("splits"), py::arg("k"), py::arg("n"));
  py::class_<TileShape>(m, "TileShape").def(py::init<int, int, int>(), py::arg("m"), py::arg("n"), py::arg("depth"));
  m.def("wgrad_schedule", &wgrad_schedule, py::arg("groups"), py::arg("features"), py::arg("k"), py::arg("tokens"),
        py::arg("tile"), py::arg("slots"));
  m.def("dgrad_blocks", [](int64_t pixel_blocks, int64_t column_blocks, int64_t groups, int64_t phases) {
    return dgrad_blocks({pixel_blocks, column_blocks, groups, phases});
  });

  py::class_<Side>(m, "Side")
      .def(py::init<int, int, int, int>(), py::arg("taps"), py::arg("stride"), py::arg("padding"), py::arg("dilation"))
      .def("taps_of",
           [](const Side& side, int phase) {
             const PhaseTaps taps = side.taps_of(phase);
             return std::array{taps.first, taps.count, taps.before};
           })
      .def("step", &Side::step)
      .def("output", &Side::output);
  m.def("tap_order", [](const Side& h, const Side& w, int i, int j) { return tap_order(h, w, i, j); });
}

}  // namespace

PYBIND11_MODULE(wuskern_testing, m) {
  m.def("widen_half", &widen_bits<Half>);
  m.def("widen_bfloat16", &widen_bits<BFloat16>);
  m.def("narrow_half", &narrow_bits<Half>);
  m.def("narrow_bfloat16", &narrow_bits<BFloat16>);

  py::class_<Layout>(m, "Layout")
      .def_readonly("outer", &Layout::outer)
      .def_readonly("channels", &Layout::channels)
      .def_readonly("inner", &Layout::inner)
      .def_readonly("outer_stride", &Layout::outer_stride)
      .def_readonly("channel_stride", &Layout::channel_stride)
      .def_readonly("inner_stride", &Layout::inner_stride)
      .def("is_rows", &Layout::is_rows)
      .def("is_planes", &Layout::is_planes)
      .def("is_dense_planes", &Layout::is_dense_planes);
  m.def("fold", &fold_layout, py::arg("sizes"), py::arg("strides"), py::arg("dim"));

  m.def("fold_in_order", &fold_layout_in_order, py::arg("sizes"), py::arg("strides"), py::arg("dim"));
  m.def("is_channels_last", [](const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides) {
    return is_channels_last(sizes.data(), strides.data());
  });

  m.def("order_key_float", [](float score) { return order_key(score); });
  m.def("order_key_double", [](double score) { return order_key(score); });
  m.def("threshold_32", &threshold_of<uint32_t>);
  m.def("threshold_64", &threshold_of<uint64_t>);
  show_buckets<uint32_t>(m, "Buckets32");
  show_buckets<uint64_t>(m, "Buckets64");
  m.attr("most_buckets") = kBuckets;
  m.def("run_length", [](const std::vector<int64_t>& rows, int64_t most) {
    return run_length(rows.data(), static_cast<int64_t>(rows.size()), most);
  });

  py::class_<Chunks>(m, "Chunks")
      .def_readonly("total", &Chunks::total)
      .def_readonly("size", &Chunks::size)
      .def("count", &Chunks::count)
      .def("begin", &Chunks::begin)
      .def("end", &Chunks::end);
  m.def("fold_tree", &fold_tree_of_eight);
  m.def("walk", &walk, py::arg("vectors"), py::arg("start"), py::arg("step"), py::arg("steps"));

  m.attr("lanes") = kLanes;
  m.attr("warps") = kWarps;
  m.attr("threads") = kThreads;
  m.attr("max_chunks") = kMaxChunks;
  m.def("rows_grid", [](int64_t rows, int64_t columns, int vec, int64_t processors) {
    const RowsGrid grid = rows_grid(rows, columns, vec, processors);
    return std::pair(grid.column_blocks, grid.rows);
  });
  m.def("planes_grid", &planes_grid, py::arg("outer"), py::arg("channels"), py::arg("inner"), py::arg("vec"),
        py::arg("processors"));
  bind_products(m);
}
