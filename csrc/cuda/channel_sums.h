// Sums over everything but the channels, in one read: what bias_grad and row_stats have in common on NVIDIA GPUs.
//
// The twin of csrc/cpu/channel_sums.h: sum_rows for neighbouring channels, sum_planes for runs that belong to one
// channel. The first pass fills the GPU with blocks and leaves one row of partial sums per chunk; sum_rows adds those
// in a fixed order. No atomics, so the bits never change from run to run. Scores take the same way as the sums, which
// therefore have the same bits with and without them.
//
// Bytes in flight: at 700 ns of latency, the 8 TB/s of a B200 want 38 KiB of loads on their way on each of its 148
// processors, the 4.8 TB/s of an H200 25 KiB on each of 132. Four blocks of 256 threads with 4 loads of 16 bytes each
// (__launch_bounds__ keeps registers for four) have 64 KiB on their way, and while a quarter of the warps add, 48 KiB.
#pragma once

#include "../common/reduction.h"
#include "../common/score.h"
#include "launch.h"
#include "vectors.h"

namespace wuskern {

// Where sums and scores go, by number: 0 and 1.
template <typename Sum, typename Acc>
struct Targets {
  Sum* sums;
  Acc* scores;

  __device__ __forceinline__ void put(int which, int64_t at, Acc value) const {
    if (which == 0) {
      sums[at] = static_cast<Sum>(value);
    } else {
      scores[at] = value;
    }
  }
};

// ---- kernels ------------------------------------------------------------------------------------------------------

// What a thread adds up.
template <Score score, int vec, typename Acc>
struct Sums {
  static constexpr int kinds = score == Score::none ? 1 : 2;
  Acc of[kinds][vec] = {};

  template <typename T>
  __device__ __forceinline__ void add(const Vector<T, vec>& vector) {
#pragma unroll
    for (int v = 0; v < vec; ++v) {
      const Acc x = static_cast<Acc>(vector.at[v]);
      of[0][v] += x;
      if constexpr (score == Score::l1) of[1][v] += fabs(x);
      if constexpr (score == Score::l2) of[1][v] += x * x;
    }
  }
};

// out[chunk, columns] = sum of the chunk's rows of src[rows, columns].
// A warp reads vec * 32 neighbouring columns; the block's warps take every kWarps-th row of the chunk. Without scores
// blockIdx.z says which of two matrices, `between` elements apart, and for which target.
template <Score score, typename T, int vec, typename Acc, typename Sum>
__global__ void __launch_bounds__(kThreads, 4) sum_rows(const T* __restrict__ src, int64_t stride, int64_t columns,
                                                        Chunks rows, int64_t between, Targets<Sum, Acc> out) {
  const int64_t first_column = int64_t{blockIdx.x} * kLanes * vec;
  const int64_t column = first_column + threadIdx.x * vec;
  const int64_t end = rows.end(blockIdx.y);
  int64_t row = rows.begin(blockIdx.y) + threadIdx.y;

  Sums<score, vec, Acc> sums;
  if (column < columns) {
    const T* p = src + blockIdx.z * between + row * stride + column;
    const int64_t step = kWarps * stride;
    for (; row + (kUnroll - 1) * kWarps < end; row += kUnroll * kWarps, p += kUnroll * step) {
      Vector<T, vec> vectors[kUnroll];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) vectors[u] = load_constant_vector<vec>(p + u * step);
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) sums.add(vectors[u]);
    }
    for (; row < end; row += kWarps, p += step) sums.add(load_constant_vector<vec>(p));
  }

  __shared__ Acc shared[sums.kinds][kWarps][kLanes * vec];
#pragma unroll
  for (int kind = 0; kind < sums.kinds; ++kind) {
#pragma unroll
    for (int v = 0; v < vec; ++v) shared[kind][threadIdx.y][threadIdx.x * vec + v] = sums.of[kind][v];
  }
  __syncthreads();

  const int thread = threadIdx.y * kLanes + threadIdx.x;
  if (thread >= kLanes * vec || first_column + thread >= columns) return;
#pragma unroll
  for (int kind = 0; kind < sums.kinds; ++kind) {
    Acc lane[kWarps];
#pragma unroll
    for (int w = 0; w < kWarps; ++w) lane[w] = shared[kind][w][thread];
    out.put(kind + blockIdx.z, blockIdx.y * columns + first_column + thread, fold_tree<kWarps>(lane));
  }
}

// out[chunk, channels] = sum of the chunk's vectors of src[outer, channels, inner]. A block takes one channel.
template <Score score, typename T, int vec, typename Acc, typename Sum>
__global__ void __launch_bounds__(kThreads, 4)
    sum_planes(const T* __restrict__ src, Layout layout, Chunks vectors, int64_t between, Targets<Sum, Acc> out) {
  const int thread = threadIdx.y * kLanes + threadIdx.x;
  const int64_t begin = vectors.begin(blockIdx.y) + thread, end = vectors.end(blockIdx.y);
  const T* const channel = src + blockIdx.z * between + blockIdx.x * layout.channel_stride;

  Sums<score, vec, Acc> sums;
  if (begin < end) {
    PlaneWalk walk(layout.inner / vec, begin, kThreads);
    int64_t left = ceil_div(end - begin, kThreads);
    const auto next = [&] {
      const T* const p = channel + walk.outer * layout.outer_stride + walk.vector * vec;
      walk.advance();
      return load_constant_vector<vec>(p);
    };
    for (; left >= kUnroll; left -= kUnroll) {
      Vector<T, vec> loaded[kUnroll];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) loaded[u] = next();
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) sums.add(loaded[u]);
    }
    for (; left > 0; --left) sums.add(next());
  }

  __shared__ Acc shared[sums.kinds][kWarps];
#pragma unroll
  for (int kind = 0; kind < sums.kinds; ++kind) {
    Acc sum = fold_tree<vec>(sums.of[kind]);
#pragma unroll
    for (int half = kLanes / 2; half > 0; half /= 2) sum += __shfl_down_sync(0xffffffffu, sum, half);
    if (threadIdx.x == 0) shared[kind][threadIdx.y] = sum;
  }
  __syncthreads();
  if (thread < sums.kinds) {
    out.put(thread + blockIdx.z, int64_t{blockIdx.y} * layout.channels + blockIdx.x, fold_tree<kWarps>(shared[thread]));
  }
}

// ---- launchers -----------------------------------------------------------------------------------------------------

// Sums of `size` channels on their way, and behind them their scores.
template <typename Acc>
struct Partial {
  int64_t size;
  Tensor owner;
  Acc* data;

  Partial(const Context& context, int64_t size, int kinds)
      : size(size), owner(new_tensor(context.like, {size * kinds}, kAccumulatorType<Acc>)), data(data_of<Acc>(owner)) {}

  Targets<Acc, Acc> targets() const { return {data, data + size}; }
};

// One tensor to sum and score; or, with Score::none, two that are only added from here on, `between` elements apart.
template <typename T>
struct Source {
  const T* data;
  int64_t between = 0;
  int matrices = 1;
};

template <Score score, typename T, typename Sum>
void launch_rows(const Context& context, const Source<T>& src, int64_t stride, int64_t rows, int64_t columns,
                 const Targets<Sum, Accumulator<T>>& out);

template <Score score, int vec, typename T, typename Sum>
void launch_rows_as(const Context& context, const Source<T>& src, int64_t stride, int64_t rows, int64_t columns,
                    const Targets<Sum, Accumulator<T>>& out) {
  using Acc = Accumulator<T>;
  const RowsGrid grid = rows_grid(rows, columns, vec, context.processors());
  const int64_t chunks = grid.rows.count();
  const dim3 blocks(grid.column_blocks, chunks, src.matrices), threads(kLanes, kWarps);
  const auto run = [&](auto kernel, const auto& target) {
    launch(context, kernel, blocks, threads, 0, src.data, stride, columns, grid.rows, src.between, target);
  };
  if (chunks == 1) return run(sum_rows<score, T, vec, Acc, Sum>, out);
  const int kinds = score == Score::none ? src.matrices : 2;
  const Partial<Acc> partial(context, chunks * columns, kinds);
  run(sum_rows<score, T, vec, Acc, Acc>, partial.targets());
  launch_rows<Score::none>(context, Source<Acc>{partial.data, partial.size, kinds}, columns, chunks, columns, out);
}

template <Score score, typename T, typename Sum>
void launch_rows(const Context& context, const Source<T>& src, int64_t stride, int64_t rows, int64_t columns,
                 const Targets<Sum, Accumulator<T>>& out) {
  if (aligned(src.data, {stride, columns})) {
    launch_rows_as<score, kVec<T>>(context, src, stride, rows, columns, out);
  } else {
    launch_rows_as<score, 1>(context, src, stride, rows, columns, out);
  }
}

template <Score score, int vec, typename T, typename Sum>
void launch_planes_as(const Context& context, const Source<T>& src, const Layout& layout,
                      const Targets<Sum, Accumulator<T>>& out) {
  using Acc = Accumulator<T>;
  const Chunks vectors = planes_grid(layout.outer, layout.channels, layout.inner, vec, context.processors());
  const int64_t chunks = vectors.count(), channels = layout.channels;
  const dim3 blocks(channels, chunks, src.matrices), threads(kLanes, kWarps);
  const auto run = [&](auto kernel, const auto& target) {
    launch(context, kernel, blocks, threads, 0, src.data, layout, vectors, src.between, target);
  };
  if (chunks == 1) return run(sum_planes<score, T, vec, Acc, Sum>, out);
  const int kinds = score == Score::none ? src.matrices : 2;
  const Partial<Acc> partial(context, chunks * channels, kinds);
  run(sum_planes<score, T, vec, Acc, Acc>, partial.targets());
  launch_rows<Score::none>(context, Source<Acc>{partial.data, partial.size, kinds}, channels, chunks, channels, out);
}

template <Score score, typename T>
void sum_channels(const Context& context, const T* data, const Layout& layout, const Targets<T, Accumulator<T>>& out) {
  using Acc = Accumulator<T>;
  const Source<T> src{data};
  const int64_t width = layout.channels * layout.inner;
  if (layout.is_rows()) {
    launch_rows<score>(context, src, layout.outer_stride, layout.outer, layout.channels, out);
  } else if (aligned(data, {layout.inner, layout.channel_stride, layout.outer_stride})) {
    launch_planes_as<score, kVec<T>>(context, src, layout, out);
  } else if (layout.is_dense_planes() && layout.outer >= kMinOuterForRows &&
             aligned(data, {width, layout.outer_stride})) {
    // Planes of an odd size, such as 7 x 7, are not aligned one by one; all planes of an image together are.
    const int kinds = score == Score::none ? 1 : 2;
    const Partial<Acc> image(context, width, kinds);
    launch_rows<score>(context, src, layout.outer_stride, layout.outer, width, image.targets());
    const Layout planes{1, layout.channels, layout.inner, width, layout.inner, 1};
    launch_planes_as<Score::none, 1>(context, Source<Acc>{image.data, width, kinds}, planes, out);
  } else {
    launch_planes_as<score, 1>(context, src, layout, out);
  }
}

// The layout of dy, of a copy where it does not fold; dy then becomes that copy.
inline Layout foldable(Tensor& dy, int64_t dim) {
  return layout_or_copy(dy, [&](const Tensor& t) {
    const std::optional<Layout> folded = fold(t, dim);
    return folded && (folded->is_rows() || folded->is_planes()) ? folded : std::nullopt;
  });
}

}  // namespace wuskern
