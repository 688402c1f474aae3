// bias_grad on the CPU: db[c] = sum of dY over everything but dimension c, in one read of dY.
//
// Two kernels do it. sum_rows adds rows of neighbouring channels (Linear, channels_last); sum_planes adds up runs of
// memory that belong to one channel (contiguous Conv2d). Each reduces a bounded chunk, and the chunks' sums go through
// sum_rows again until one row is left, so no order depends on the number of threads.
#include <algorithm>
#include <memory>
#include <numeric>

#include "../common/half.h"
#include "../common/reduction.h"
#include "../stable_abi.h"
#include "bias_grad_kernels.h"

namespace wuskern {
namespace {

constexpr int64_t kTileColumns = 1024;  // 8 KiB of accumulators: they stay in L1
constexpr int64_t kChunkRows = 128;     // rows that one accumulator takes in, or more where they are short
constexpr int64_t kChunk = 65536;       // elements of such a chunk
constexpr int64_t kSegment = 16384;     // elements of a plane, or of several short ones, that one task takes in
constexpr int64_t kShortPlane = 512;    // shorter planes of kManyPlanes images are added up image by image first
constexpr int64_t kManyPlanes = 8;
constexpr int64_t kShortRun = 64;         // shorter runs between gaps are copied together first
constexpr int64_t kTaskElements = 32768;  // less is not worth another thread
constexpr int64_t kNarrow = 256;          // fewer columns are made more, where they do not fill vectors
constexpr int64_t kVector = 16;           // elements that the kernels take at a time

// ---- launchers: raw pointers, one parallel loop each ---------------------------------------------------------------

template <typename T>
BiasGradKernels<T> kernels() {
#define WUSKERN_PICK(NAME) \
  if (capability() == Capability::NAME) return NAME::bias_grad_kernels<T>();
  WUSKERN_FOR_EACH_CAPABILITY(WUSKERN_PICK)
#undef WUSKERN_PICK
  return baseline::bias_grad_kernels<T>();
}

int64_t tasks_per_thread(int64_t elements_per_task) { return ceil_div(kTaskElements, elements_per_task); }

// out[columns] = sum of src[rows, columns]
template <typename T, typename Out>
void sum_rows(const T* src, int64_t stride, int64_t rows, int64_t columns, Out* out) {
  const BiasGradKernels<T> kernel = kernels<T>();
  const Chunks chunks{rows, std::max(kChunkRows, kChunk / columns)}, tiles{columns, kTileColumns};
  const bool last = chunks.count() == 1;
  const std::unique_ptr<double[]> partial(last ? nullptr : new double[chunks.count() * columns]);

  const int64_t tile_elements = std::min(rows, chunks.size) * std::min(columns, kTileColumns);
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

// The same where dense rows are too short for vectors: several in a row make a wide one, whose parts are added last.
template <typename T>
void sum_narrow_rows(const T* src, int64_t rows, int64_t columns, T* out) {
  const int64_t together = kVector / std::gcd(columns, int64_t{kVector}), wide = columns * together;
  const int64_t rest = rows % together * columns;
  const std::unique_ptr<double[]> parts(new double[wide + rest]);
  sum_rows(src, wide, rows / together, wide, parts.get());
  for (int64_t i = 0; i < rest; ++i) parts[wide + i] = widen(src[rows * columns - rest + i]);
  sum_rows<double, T>(parts.get(), columns, together + rows % together, columns, out);
}

// out[channels] = sum of src[outer, channels, inner], inner being runs of memory
template <typename T, typename Out>
void sum_planes(const T* src, const Layout& layout, Out* out) {
  const BiasGradKernels<T> kernel = kernels<T>();
  const Chunks segments{layout.inner, kSegment}, groups{layout.channels, ceil_div(kSegment, layout.inner)};
  const int64_t rows = layout.outer * segments.count();
  const std::unique_ptr<double[]> partial(new double[rows * layout.channels]);  // [outer, segments, channels]

  const int64_t task_elements = std::min(layout.inner, kSegment) * std::min(layout.channels, groups.size);
  torch::stable::parallel_for(
      0, rows * groups.count(), tasks_per_thread(task_elements), [&](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; ++task) {  // in memory order: [outer, groups of channels, segments]
          const int64_t segment = task % segments.count(), rest = task / segments.count();
          const int64_t group = rest % groups.count(), outer = rest / groups.count();
          const int64_t channel = groups.begin(group), first = segments.begin(segment);
          const T* const runs = src + outer * layout.outer_stride + channel * layout.channel_stride + first;
          double* const sums = partial.get() + (outer * segments.count() + segment) * layout.channels + channel;
          kernel.add_runs(runs, layout.channel_stride, groups.end(group) - channel, segments.end(segment) - first,
                          sums);
        }
      });
  sum_rows(partial.get(), layout.channels, rows, layout.channels, out);
}

template <typename T>
void reduce(const T* src, const Layout& layout, T* out) {
  if (layout.is_dense_rows() && layout.channels < kNarrow && layout.channels % kVector && layout.outer >= kVector) {
    sum_narrow_rows(src, layout.outer, layout.channels, out);
  } else if (layout.is_rows()) {
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
  return layout.is_rows() || layout.is_dense_planes() || (layout.is_planes() && layout.inner >= kShortRun);
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
