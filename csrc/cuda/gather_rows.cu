// gather_rows on NVIDIA GPUs: the chosen rows of dY, next to each other. Bits are copied whatever they mean.
//
// A thread has one place of the result, a vector of 16 bytes where that fits, and copies it for every outer index of
// its block's chunk: it looks its row up once, neighbouring threads write neighbouring memory, and kUnroll loads of a
// thread are on their way at a time. Where the channels are neighbours (Linear, channels_last) a vector is several
// rows: one load where those follow each other, as rows chosen in aligned blocks do, else a load for each. Of a Linear
// the rows of the result are padded with zeros to kRowUnit elements, so that its products copy and multiply vectors.
#include <climits>

#include "../common/reduction.h"
#include "../torch/checks.h"
#include "../torch/gather_order.h"
#include "launch.h"
#include "vectors.h"

namespace wuskern {
namespace {

struct Gather {
  int64_t outer, channels, inner;  // inner: elements next to each other of one row
  int64_t outer_stride, channel_stride, k;
  int64_t row_elements;  // of the result, for one outer index: k * inner, and padding where inner is 1
  bool in_vectors;       // whether each outer index of dY starts a vector
  const int64_t* rows;
};

enum class Vectors { single, within_a_row, of_rows };

// Where a thread's vector of `vec` elements comes from: one place, or one for each element.
template <int vec, Vectors vectors>
struct Origin {
  int64_t at;

  __device__ Origin(const Gather& g, int64_t element)
      : at(element < g.k * g.inner ? g.rows[element / g.inner] * g.channel_stride + element % g.inner : -1) {}

  template <typename T>
  __device__ __forceinline__ Vector<T, vec> load(const T* src) const {
    return at < 0 ? Vector<T, vec>{} : load_constant_vector<vec>(src + at);
  }
};

template <int vec>
struct Origin<vec, Vectors::of_rows> {
  int at[vec];
  bool together;  // a vector of dY too

  __device__ Origin(const Gather& g, int64_t element) {
#pragma unroll
    for (int v = 0; v < vec; ++v) at[v] = element + v < g.k ? static_cast<int>(g.rows[element + v]) : -1;
    together = g.in_vectors && at[0] % vec == 0 && at[vec - 1] - at[0] == vec - 1;
  }

  template <typename T>
  __device__ __forceinline__ Vector<T, vec> load(const T* src) const {
    if (together) return load_constant_vector<vec>(src + at[0]);
    Vector<T, vec> vector;
#pragma unroll
    for (int v = 0; v < vec; ++v) vector.at[v] = at[v] < 0 ? T{} : __ldg(src + at[v]);
    return vector;
  }
};

// out[outer, k, inner] = src[outer, rows, inner]. Threads: places of a row of the result, and outer indices.
template <typename T, int vec, Vectors vectors>
__global__ void __launch_bounds__(kThreads, 4)
    gather(const T* __restrict__ src, Gather g, Chunks chunks, T* __restrict__ out) {
  const int64_t element = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * vec, row_elements = g.row_elements;
  if (element >= row_elements) return;
  const Origin<vec, vectors> origin(g, element);
  constexpr int unroll = vectors == Vectors::of_rows ? kUnroll / 2 : kUnroll;  // those are many loads each
  const int64_t end = chunks.end(blockIdx.y), step = blockDim.y;
  int64_t o = chunks.begin(blockIdx.y) + threadIdx.y;
  for (; o + (unroll - 1) * step < end; o += unroll * step) {
    Vector<T, vec> loaded[unroll];
#pragma unroll
    for (int u = 0; u < unroll; ++u) loaded[u] = origin.load(src + (o + u * step) * g.outer_stride);
#pragma unroll
    for (int u = 0; u < unroll; ++u) store_vector<vec>(out + (o + u * step) * row_elements + element, loaded[u]);
  }
  for (; o < end; o += step) {
    store_vector<vec>(out + o * row_elements + element, origin.load(src + o * g.outer_stride));
  }
}

template <typename T, int vec, Vectors vectors>
void launch_gather(const Context& context, const T* src, const Gather& g, T* out) {
  const int64_t vectors_of_row = g.row_elements / vec;
  unsigned across = kLanes;  // threads along the row; the others take further outer indices
  while (across < kThreads && across < vectors_of_row) across *= 2;
  const dim3 threads(across, kThreads / across);
  const int64_t row_blocks = ceil_div(vectors_of_row, across);
  const Chunks chunks = fill_grid(g.outer, int64_t{threads.y} * kUnroll, row_blocks, context.processors());
  launch(context, gather<T, vec, vectors>, dim3(grid_of(row_blocks), chunks.count()), threads, 0, src, g, chunks, out);
}

template <typename T>
void gather_as(const Context& context, const T* src, Gather g, T* out) {
  g.in_vectors = aligned(src, {g.outer_stride});
  if (g.inner > 1 && aligned(src, {g.inner, g.channel_stride, g.outer_stride}) && aligned_to_16({out})) {
    launch_gather<T, kVec<T>, Vectors::within_a_row>(context, src, g, out);
  } else if (g.inner == 1 && g.channel_stride == 1 && g.channels <= INT_MAX && aligned(out, {g.row_elements})) {
    launch_gather<T, kVec<T>, Vectors::of_rows>(context, src, g, out);
  } else {
    launch_gather<T, 1, Vectors::single>(context, src, g, out);
  }
}

// On a GPU the rows' values are not looked at: that would wait for it.
Tensor gather_rows(Tensor dy, Tensor rows, int64_t dim) {
  check_dtype(dy, "dy");
  dim = front_dim(dy, dim);
  check_index(rows, dy, dy.size(dim));
  const Context context(dy);
  make_contiguous(rows);
  const GatherOrder order(dy);
  const int64_t k = rows.numel();
  const bool pads = dim == dy.dim() - 1 && !order.channels_last;
  Tensor whole = order.new_result(dy, dim, pads ? ceil_div(k, kRowUnit) * kRowUnit : k);
  Tensor out = pads ? torch::stable::narrow(whole, dim, 0, k) : whole;
  if (out.numel() == 0) return out;

  const auto [outer, channels, inner, outer_stride, channel_stride, _] = order.layout(dy, dim);
  const int64_t row_elements = pads ? whole.size(dim) : k * inner;
  const Gather g{outer, channels, inner, outer_stride, channel_stride, k, row_elements, false, indices_of(rows)};
  for_dtype<uint16_t, uint16_t>(dy.scalar_type(), [&]<typename T>(std::type_identity<T>) {
    gather_as(context, const_data_of<T>(dy), g, data_of<T>(out));
  });
  return out;
}

}  // namespace
}  // namespace wuskern

STABLE_TORCH_LIBRARY_IMPL(wuskern_native, CUDA, m) { m.impl("gather_rows", TORCH_BOX(&wuskern::gather_rows)); }
