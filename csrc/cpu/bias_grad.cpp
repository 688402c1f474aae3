// bias_grad on the CPU: db[c] = sum of dY over everything but dimension c, in one read of dY.
//
// Two kernels do it. sum_rows adds rows of neighbouring channels (Linear, channels_last); sum_planes adds up runs of
// memory that belong to one channel (contiguous Conv2d). Each reduces a bounded chunk, and the chunks' sums go through
// sum_rows again until one row is left, so no order depends on the number of threads. Eight elements at a time are
// added in their own precision (16-bit ones as fp32), everything above that in fp64: it costs nothing here, since
// reading dY is what takes the time.
#include <algorithm>
#include <memory>

#include "../common/half.h"
#include "../common/reduction.h"
#include "../stable_abi.h"
#include "capability.h"

namespace wuskern {
namespace {

constexpr int64_t kChunkRows = 128;     // rows that one accumulator takes in
constexpr int64_t kTileColumns = 1024;  // 8 KiB of accumulators: they stay in L1
constexpr int64_t kSegment = 16384;     // elements of a plane that one task takes in
constexpr int64_t kShortPlane = 512;    // shorter planes of kManyPlanes images are added up image by image first
constexpr int64_t kManyPlanes = 8;
constexpr int64_t kTaskElements = 32768;  // less is not worth another thread
constexpr int kRunLanes = 64;             // independent sums of one run: four AVX-512 registers of fp32

// ---- kernels -------------------------------------------------------------------------------------------------------

// acc[columns] = sum of src[rows, columns], eight rows at a time: one trip through acc for eight loads.
template <typename T>
WUSKERN_INLINE void add_rows(const T* __restrict src, int64_t stride, int64_t rows, int64_t columns,
                             double* __restrict acc) {
  for (int64_t c = 0; c < columns; ++c) acc[c] = 0;
  int64_t r = 0;
  for (; r + 8 <= rows; r += 8) {
    const T* const p = src + r * stride;
    for (int64_t c = 0; c < columns; ++c) {
      const auto a = widen(p[c]) + widen(p[c + stride]);
      const auto b = widen(p[c + 2 * stride]) + widen(p[c + 3 * stride]);
      const auto d = widen(p[c + 4 * stride]) + widen(p[c + 5 * stride]);
      const auto e = widen(p[c + 6 * stride]) + widen(p[c + 7 * stride]);
      acc[c] += (a + b) + (d + e);
    }
  }
  for (; r < rows; ++r) {
    const T* const p = src + r * stride;
    for (int64_t c = 0; c < columns; ++c) acc[c] += widen(p[c]);
  }
}

// The sum of one run of memory, seen as rows of kRunLanes columns.
template <typename T>
WUSKERN_INLINE double add_run(const T* __restrict src, int64_t size) {
  double lane[kRunLanes];
  const int64_t rows = size / kRunLanes;
  add_rows(src, kRunLanes, rows, kRunLanes, lane);
  for (int64_t i = rows * kRunLanes; i < size; ++i) lane[i % kRunLanes] += widen(src[i]);
  return fold_tree<kRunLanes>(lane);
}

template <typename T>
struct Kernels {
  void (*add_rows)(const T*, int64_t, int64_t, int64_t, double*);
  double (*add_run)(const T*, int64_t);
};

#define WUSKERN_KERNELS(NAME, TARGET)                                                                   \
  template <typename T>                                                                                 \
  struct NAME##_kernels {                                                                               \
    TARGET static void rows(const T* src, int64_t stride, int64_t rows, int64_t columns, double* acc) { \
      add_rows(src, stride, rows, columns, acc);                                                        \
    }                                                                                                   \
    TARGET static double run(const T* src, int64_t size) { return add_run(src, size); }                 \
  };
WUSKERN_FOR_EACH_CAPABILITY(WUSKERN_KERNELS)

template <typename T>
Kernels<T> kernels() {
#define WUSKERN_PICK(NAME, TARGET) \
  if (capability() == Capability::NAME) return {NAME##_kernels<T>::rows, NAME##_kernels<T>::run};
  WUSKERN_FOR_EACH_CAPABILITY(WUSKERN_PICK)
  return {baseline_kernels<T>::rows, baseline_kernels<T>::run};
}

// ---- launchers: raw pointers, one parallel loop each ---------------------------------------------------------------

int64_t tasks_per_thread(int64_t elements_per_task) { return ceil_div(kTaskElements, elements_per_task); }

// out[columns] = sum of src[rows, columns]
template <typename T, typename Out>
void sum_rows(const T* src, int64_t stride, int64_t rows, int64_t columns, Out* out) {
  const Kernels<T> kernel = kernels<T>();
  const Chunks chunks{rows, kChunkRows}, tiles{columns, kTileColumns};
  const bool last = chunks.count() == 1;
  const std::unique_ptr<double[]> partial(last ? nullptr : new double[chunks.count() * columns]);

  const int64_t tile_elements = std::min(rows, kChunkRows) * std::min(columns, kTileColumns);
  torch::stable::parallel_for(
      0, chunks.count() * tiles.count(), tasks_per_thread(tile_elements), [&](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; ++task) {
          const int64_t chunk = task / tiles.count(), tile = task % tiles.count();
          const int64_t column = tiles.begin(tile), width = tiles.end(tile) - column;
          const T* const corner = src + chunks.begin(chunk) * stride + column;
          double acc[kTileColumns];
          double* const target = last ? acc : partial.get() + chunk * columns + column;
          kernel.add_rows(corner, stride, chunks.end(chunk) - chunks.begin(chunk), width, target);
          if (last) {
            for (int64_t c = 0; c < width; ++c) narrow(acc[c], &out[column + c]);
          }
        }
      });
  if (!last) sum_rows(partial.get(), columns, chunks.count(), columns, out);
}

// out[channels] = sum of src[outer, channels, inner], inner being runs of memory
template <typename T, typename Out>
void sum_planes(const T* src, const Layout& layout, Out* out) {
  const Kernels<T> kernel = kernels<T>();
  const Chunks segments{layout.inner, kSegment};
  const int64_t rows = layout.outer * segments.count();
  const std::unique_ptr<double[]> partial(new double[rows * layout.channels]);  // [outer, segments, channels]

  torch::stable::parallel_for(
      0, rows * layout.channels, tasks_per_thread(std::min(layout.inner, kSegment)), [&](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; ++task) {  // in memory order: [outer, channels, segments]
          const int64_t segment = task % segments.count(), plane = task / segments.count();
          const int64_t channel = plane % layout.channels, outer = plane / layout.channels;
          const T* const run = src + outer * layout.outer_stride + channel * layout.channel_stride;
          const int64_t first = segments.begin(segment), row = outer * segments.count() + segment;
          partial[row * layout.channels + channel] = kernel.add_run(run + first, segments.end(segment) - first);
        }
      });
  sum_rows(partial.get(), layout.channels, rows, layout.channels, out);
}

template <typename T>
void reduce(const T* src, const Layout& layout, T* out) {
  if (layout.is_rows()) {
    sum_rows(src, layout.outer_stride, layout.outer, layout.channels, out);
  } else if (layout.is_dense_planes() && layout.inner < kShortPlane && layout.outer >= kManyPlanes) {
    const int64_t width = layout.channels * layout.inner;
    const std::unique_ptr<double[]> planes(new double[width]);
    sum_rows(src, layout.outer_stride, layout.outer, width, planes.get());
    sum_planes<double, T>(planes.get(), {1, layout.channels, layout.inner, width, layout.inner, 1}, out);
  } else {
    sum_planes(src, layout, out);
  }
}

// ---- op ------------------------------------------------------------------------------------------------------------

bool fits(const Layout& layout) {
  return layout.is_rows() || layout.is_dense_planes() || (layout.is_planes() && layout.inner >= kRunLanes);
}

Tensor bias_grad(Tensor dy, int64_t dim) {
  dim = front_dim(dy, dim);
  Tensor out = new_vector(dy, dy.size(dim));
  if (dy.numel() == 0) return torch::stable::zero_(out);

  std::optional<Layout> layout = fold(dy, dim);
  if (!layout || !fits(*layout)) {
    dy = torch::stable::contiguous(dy);
    layout = fold(dy, dim);
  }
  const void* const src = dy.const_data_ptr();
  void* const dst = out.mutable_data_ptr();
  for_dtype<Half, BFloat16>(dy.scalar_type(), [&]<typename T>(std::type_identity<T>) {
    reduce(static_cast<const T*>(src), *layout, static_cast<T*>(dst));
  });
  return out;
}

}  // namespace
}  // namespace wuskern

STABLE_TORCH_LIBRARY_IMPL(wuskern_native, CPU, m) { m.impl("bias_grad", TORCH_BOX(&wuskern::bias_grad)); }
