// bias_grad on NVIDIA GPUs: db[c] = sum of dY over everything but dimension c, in one read of dY.
//
// The twin of csrc/cpu/bias_grad.cpp: sum_rows for neighbouring channels, sum_planes for runs that belong to one
// channel. The first pass fills the GPU with blocks and leaves one fp32 row per chunk; the second adds those rows in
// a fixed order. No atomics, so the bits never change from run to run.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <type_traits>

#include "../common/half.h"
#include "../common/reduction.h"
#include "../stable_abi.h"
#include "launch.h"

namespace wuskern {
namespace {

template <typename T>
using Accumulator = std::conditional_t<std::is_same_v<T, double>, double, float>;

// ---- kernels -------------------------------------------------------------------------------------------------------

template <typename T, int vec>
struct alignas(sizeof(T) * vec) Pack {
  T at[vec];
};

// One load instruction. Left to itself the compiler may read a pack element by element.
template <int vec, typename T>
__device__ __forceinline__ Pack<T, vec> load(const T* p) {
  if constexpr (sizeof(Pack<T, vec>) == sizeof(uint4)) {
    return bit_cast<Pack<T, vec>>(__ldg(reinterpret_cast<const uint4*>(p)));
  } else {
    return {{*p}};
  }
}

template <typename T, int vec, typename Acc>
__device__ __forceinline__ void add(Acc (&acc)[vec], const Pack<T, vec>& pack) {
#pragma unroll
  for (int v = 0; v < vec; ++v) acc[v] += static_cast<Acc>(pack.at[v]);
}

// out[chunk, columns] = sum of the chunk's rows of src[rows, columns].
// A warp reads vec * 32 neighbouring columns; the block's warps take every kWarps-th row of the chunk.
template <typename T, int vec, typename Acc, typename Out>
__global__ void __launch_bounds__(kThreads, 4)
    sum_rows(const T* __restrict__ src, int64_t stride, int64_t columns, Chunks rows, Out* __restrict__ out) {
  const int64_t first_column = int64_t{blockIdx.x} * kLanes * vec;
  const int64_t column = first_column + threadIdx.x * vec;
  const int64_t end = rows.end(blockIdx.y);
  int64_t row = rows.begin(blockIdx.y) + threadIdx.y;

  Acc acc[vec] = {};
  if (column < columns) {
    const T* p = src + row * stride + column;
    const int64_t step = kWarps * stride;
    for (; row + (kUnroll - 1) * kWarps < end; row += kUnroll * kWarps, p += kUnroll * step) {
      Pack<T, vec> packs[kUnroll];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) packs[u] = load<vec>(p + u * step);
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) add(acc, packs[u]);
    }
    for (; row < end; row += kWarps, p += step) add(acc, load<vec>(p));
  }

  __shared__ Acc shared[kWarps][kLanes * vec];
#pragma unroll
  for (int v = 0; v < vec; ++v) shared[threadIdx.y][threadIdx.x * vec + v] = acc[v];
  __syncthreads();

  const int thread = threadIdx.y * kLanes + threadIdx.x;
  if (thread < kLanes * vec && first_column + thread < columns) {
    Acc lane[kWarps];
#pragma unroll
    for (int w = 0; w < kWarps; ++w) lane[w] = shared[w][thread];
    out[int64_t{blockIdx.y} * columns + first_column + thread] = static_cast<Out>(fold_tree<kWarps>(lane));
  }
}

// out[chunk, channels] = sum of the chunk's packs of src[outer, channels, inner]. A block takes one channel.
template <typename T, int vec, typename Acc, typename Out>
__global__ void __launch_bounds__(kThreads, 4)
    sum_planes(const T* __restrict__ src, Layout layout, Chunks packs, Out* __restrict__ out) {
  const int thread = threadIdx.y * kLanes + threadIdx.x;
  const int64_t begin = packs.begin(blockIdx.y) + thread, end = packs.end(blockIdx.y);
  const T* const channel = src + int64_t{blockIdx.x} * layout.channel_stride;

  Acc acc[vec] = {};
  if (begin < end) {
    PlaneWalk walk(layout.inner / vec, begin, kThreads);
    int64_t left = ceil_div(end - begin, kThreads);
    const auto next = [&] {
      const T* const p = channel + walk.outer * layout.outer_stride + walk.pack * vec;
      walk.advance();
      return load<vec>(p);
    };
    for (; left >= kUnroll; left -= kUnroll) {
      Pack<T, vec> loaded[kUnroll];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) loaded[u] = next();
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) add(acc, loaded[u]);
    }
    for (; left > 0; --left) add(acc, next());
  }

  Acc sum = fold_tree<vec>(acc);
#pragma unroll
  for (int half = kLanes / 2; half > 0; half /= 2) sum += __shfl_down_sync(0xffffffffu, sum, half);
  __shared__ Acc shared[kWarps];
  if (threadIdx.x == 0) shared[threadIdx.y] = sum;
  __syncthreads();
  if (thread == 0) {
    out[int64_t{blockIdx.y} * layout.channels + blockIdx.x] = static_cast<Out>(fold_tree<kWarps>(shared));
  }
}

// ---- launchers: raw pointers and a stream; partial sums come from PyTorch's allocator -------------------------------

struct Context {
  const Tensor& dy;  // for allocations
  ScalarType accumulator;
  cudaStream_t stream;
  int64_t processors;

  template <typename Acc>
  std::pair<Tensor, Acc*> workspace(int64_t size) const {
    Tensor tensor = new_vector(dy, size, accumulator);
    return {tensor, static_cast<Acc*>(tensor.mutable_data_ptr())};
  }
};

template <typename T>
constexpr int kVec = 16 / sizeof(T);

template <typename T>
bool aligned(const T* pointer, std::initializer_list<int64_t> multiples) {
  if (reinterpret_cast<uintptr_t>(pointer) % 16 != 0) return false;
  for (const int64_t m : multiples) {
    if (m % kVec<T> != 0) return false;
  }
  return true;
}

template <typename T, typename Out>
void launch_rows(const Context& context, const T* src, int64_t stride, int64_t rows, int64_t columns, Out* out);

template <int vec, typename T, typename Out>
void launch_rows_as(const Context& context, const T* src, int64_t stride, int64_t rows, int64_t columns, Out* out) {
  using Acc = Accumulator<T>;
  const RowsGrid grid = rows_grid(rows, columns, vec, context.processors);
  const dim3 blocks(grid.column_blocks, grid.rows.count()), threads(kLanes, kWarps);
  if (grid.rows.count() == 1) {
    launch(sum_rows<T, vec, Acc, Out>, blocks, threads, 0, context.stream, src, stride, columns, grid.rows, out);
    return;
  }
  const auto [owner, partial] = context.workspace<Acc>(grid.rows.count() * columns);
  launch(sum_rows<T, vec, Acc, Acc>, blocks, threads, 0, context.stream, src, stride, columns, grid.rows, partial);
  launch_rows<Acc, Out>(context, partial, columns, grid.rows.count(), columns, out);
}

template <typename T, typename Out>
void launch_rows(const Context& context, const T* src, int64_t stride, int64_t rows, int64_t columns, Out* out) {
  if (aligned(src, {stride, columns})) {
    launch_rows_as<kVec<T>>(context, src, stride, rows, columns, out);
  } else {
    launch_rows_as<1>(context, src, stride, rows, columns, out);
  }
}

template <int vec, typename T, typename Out>
void launch_planes_as(const Context& context, const T* src, const Layout& layout, Out* out) {
  using Acc = Accumulator<T>;
  const Chunks packs = planes_grid(layout.outer, layout.channels, layout.inner, vec, context.processors);
  const dim3 blocks(layout.channels, packs.count()), threads(kLanes, kWarps);
  if (packs.count() == 1) {
    launch(sum_planes<T, vec, Acc, Out>, blocks, threads, 0, context.stream, src, layout, packs, out);
    return;
  }
  const auto [owner, partial] = context.workspace<Acc>(packs.count() * layout.channels);
  launch(sum_planes<T, vec, Acc, Acc>, blocks, threads, 0, context.stream, src, layout, packs, partial);
  launch_rows<Acc, Out>(context, partial, layout.channels, packs.count(), layout.channels, out);
}

template <typename T>
void reduce(const Context& context, const T* src, const Layout& layout, T* out) {
  const int64_t width = layout.channels * layout.inner;
  if (layout.is_rows()) {
    launch_rows(context, src, layout.outer_stride, layout.outer, layout.channels, out);
  } else if (aligned(src, {layout.inner, layout.channel_stride, layout.outer_stride})) {
    launch_planes_as<kVec<T>>(context, src, layout, out);
  } else if (layout.is_dense_planes() && layout.outer >= kMinOuterForRows &&
             aligned(src, {width, layout.outer_stride})) {
    // Planes of an odd size, such as 7 x 7, are not aligned one by one; all planes of an image together are.
    using Acc = Accumulator<T>;
    const auto [owner, planes] = context.workspace<Acc>(width);
    launch_rows<T, Acc>(context, src, layout.outer_stride, layout.outer, width, planes);
    launch_planes_as<1>(context, planes, Layout{1, layout.channels, layout.inner, width, layout.inner, 1}, out);
  } else {
    launch_planes_as<1>(context, src, layout, out);
  }
}

// ---- op ------------------------------------------------------------------------------------------------------------

Tensor bias_grad(Tensor dy, int64_t dim) {
  dim = front_dim(dy, dim);
  const torch::stable::accelerator::DeviceGuard guard(dy.get_device_index());
  Tensor out = new_vector(dy, dy.size(dim));
  if (dy.numel() == 0) return torch::stable::zero_(out);

  std::optional<Layout> layout = fold(dy, dim);
  if (!layout || !(layout->is_rows() || layout->is_planes())) {
    dy = torch::stable::contiguous(dy);
    layout = fold(dy, dim);
  }
  const ScalarType dtype = dy.scalar_type();
  const Context context{dy, dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float,
                        current_stream(dy.get_device_index()), processor_count(dy.get_device_index())};
  const void* const src = dy.const_data_ptr();
  void* const dst = out.mutable_data_ptr();
  for_dtype<__half, __nv_bfloat16>(dtype, [&]<typename T>(std::type_identity<T>) {
    reduce(context, static_cast<const T*>(src), *layout, static_cast<T*>(dst));
  });
  return out;
}

}  // namespace
}  // namespace wuskern

STABLE_TORCH_LIBRARY_IMPL(wuskern_native, CUDA, m) { m.impl("bias_grad", TORCH_BOX(&wuskern::bias_grad)); }
