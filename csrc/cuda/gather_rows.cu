// gather_rows on NVIDIA GPUs: the chosen rows of dY, next to each other. Bits are copied whatever they mean.
//
// A thread has one place of the result, a pack of 16 bytes where that fits, and copies it for every outer index of its
// block's chunk: it looks its row up once, neighbouring threads write neighbouring memory, and kUnroll loads of a
// thread are on their way at a time. Where the channels are neighbours (Linear, channels_last) a pack is several rows:
// one load where those follow each other, as rows chosen in aligned blocks do, else a load for each.
#include <climits>

#include "../checks.h"
#include "../common/reduction.h"
#include "../gather_order.h"
#include "launch.h"
#include "pack.h"

namespace wuskern {
namespace {

struct Gather {
  int64_t outer, channels, inner;  // inner: elements next to each other of one row
  int64_t outer_stride, channel_stride, k;
  const int64_t* rows;

  int64_t row_elements() const { return k * inner; }  // of the result, for one outer index
};

enum class Packs { single, within_a_row, of_rows };

// Where a thread's pack of `vec` elements comes from: one place, or one for each element.
template <int vec, Packs packs>
struct Origin {
  int64_t at;

  __device__ Origin(const Gather& g, int64_t element)
      : at(g.rows[element / g.inner] * g.channel_stride + element % g.inner) {}

  template <typename T>
  __device__ __forceinline__ Pack<T, vec> load(const T* src) const {
    return load_constant<vec>(src + at);
  }
};

template <int vec>
struct Origin<vec, Packs::of_rows> {
  int at[vec];
  bool together;  // a pack of dY too

  __device__ Origin(const Gather& g, int64_t element) {
#pragma unroll
    for (int v = 0; v < vec; ++v) at[v] = static_cast<int>(g.rows[element + v]);
    together = at[0] % vec == 0 && at[vec - 1] - at[0] == vec - 1;
  }

  template <typename T>
  __device__ __forceinline__ Pack<T, vec> load(const T* src) const {
    if (together) return load_constant<vec>(src + at[0]);
    Pack<T, vec> pack;
#pragma unroll
    for (int v = 0; v < vec; ++v) pack.at[v] = __ldg(src + at[v]);
    return pack;
  }
};

// out[outer, k, inner] = src[outer, rows, inner]. Threads: places of a row of the result, and outer indices.
template <typename T, int vec, Packs packs>
__global__ void __launch_bounds__(kThreads, 4)
    gather(const T* __restrict__ src, Gather g, Chunks chunks, int64_t row_elements, T* __restrict__ out) {
  const int64_t element = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * vec;
  if (element >= row_elements) return;
  const Origin<vec, packs> origin(g, element);
  constexpr int unroll = packs == Packs::of_rows ? kUnroll / 2 : kUnroll;  // those are many loads each
  const int64_t end = chunks.end(blockIdx.y), step = blockDim.y;
  int64_t o = chunks.begin(blockIdx.y) + threadIdx.y;
  for (; o + (unroll - 1) * step < end; o += unroll * step) {
    Pack<T, vec> loaded[unroll];
#pragma unroll
    for (int u = 0; u < unroll; ++u) loaded[u] = origin.load(src + (o + u * step) * g.outer_stride);
#pragma unroll
    for (int u = 0; u < unroll; ++u) store_pack<vec>(out + (o + u * step) * row_elements + element, loaded[u]);
  }
  for (; o < end; o += step) {
    store_pack<vec>(out + o * row_elements + element, origin.load(src + o * g.outer_stride));
  }
}

template <typename T, int vec, Packs packs>
void launch_gather(const T* src, const Gather& g, int64_t processors, cudaStream_t stream, T* out) {
  const int64_t packs_of_row = g.row_elements() / vec;
  unsigned across = kLanes;  // threads along the row; the others take further outer indices
  while (across < kThreads && across < packs_of_row) across *= 2;
  const dim3 threads(across, kThreads / across);
  const int64_t row_blocks = ceil_div(packs_of_row, across);
  const Chunks chunks = fill_grid(g.outer, int64_t{threads.y} * kUnroll, row_blocks, processors);
  launch(gather<T, vec, packs>, dim3(grid_of(row_blocks), chunks.count()), threads, 0, stream, src, g, chunks,
         g.row_elements(), out);
}

template <typename T>
void gather_as(const void* from, const Gather& g, int64_t processors, cudaStream_t stream, void* to) {
  const T* const src = static_cast<const T*>(from);
  T* const out = static_cast<T*>(to);
  if (g.inner > 1 && aligned(src, {g.inner, g.channel_stride, g.outer_stride}) && aligned_to_16({out})) {
    launch_gather<T, kVec<T>, Packs::within_a_row>(src, g, processors, stream, out);
  } else if (g.inner == 1 && g.channel_stride == 1 && g.channels <= INT_MAX && aligned(src, {g.k, g.outer_stride}) &&
             aligned_to_16({out})) {
    launch_gather<T, kVec<T>, Packs::of_rows>(src, g, processors, stream, out);
  } else {
    launch_gather<T, 1, Packs::single>(src, g, processors, stream, out);
  }
}

// Of the shape of dy with k rows, in its memory format: [B, H, W, k] seen as [B, k, H, W].
Tensor new_like(const Tensor& dy, int64_t dim, int64_t k, bool channels_last) {
  std::vector<int64_t> sizes(dy.sizes().begin(), dy.sizes().end());
  sizes[dim] = k;
  if (!channels_last) return torch::stable::new_empty(dy, sizes);
  const Tensor out = torch::stable::new_empty(dy, {sizes[0], sizes[2], sizes[3], sizes[1]});
  return torch::stable::transpose(torch::stable::transpose(out, 1, 3), 2, 3);
}

// On a GPU the rows' values are not looked at: that would wait for it.
Tensor gather_rows(Tensor dy, Tensor rows, int64_t dim) {
  check_dtype(dy, "dy");
  dim = front_dim(dy, dim);
  check_index(rows, dy, dy.size(dim));
  const int32_t device = dy.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  if (!rows.is_contiguous()) rows = torch::stable::contiguous(rows);
  const Order order(dy);
  Tensor out = new_like(dy, dim, rows.numel(), order.channels_last);
  if (out.numel() == 0) return out;

  std::optional<Layout> layout = order.fold(dy, dim);
  if (!layout || layout->inner_stride != 1) {
    dy = torch::stable::contiguous(dy);
    layout = order.fold(dy, dim);
  }
  const auto [outer, channels, inner, outer_stride, channel_stride, _] = *layout;
  const Gather g{outer, channels, inner, outer_stride, channel_stride, rows.numel(), rows.const_data_ptr<int64_t>()};
  const void* const src = dy.const_data_ptr();
  void* const dst = out.mutable_data_ptr();
  const int64_t processors = processor_count(device);
  for_dtype<uint16_t, uint16_t>(dy.scalar_type(), [&]<typename T>(std::type_identity<T>) {
    gather_as<T>(src, g, processors, current_stream(device), dst);
  });
  return out;
}

}  // namespace
}  // namespace wuskern

STABLE_TORCH_LIBRARY_IMPL(wuskern_native, CUDA, m) { m.impl("gather_rows", TORCH_BOX(&wuskern::gather_rows)); }
