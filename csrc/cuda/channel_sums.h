// Sums over everything but the channels, in one read and one launch: what bias_grad and row_stats have in common on
// NVIDIA GPUs.
//
// The twin of csrc/cpu/channel_sums.h: sum_rows for neighbouring channels, sum_planes for runs that belong to one
// channel. Blocks fill the GPU and leave partial sums, and of the blocks that share channels the last one adds those in
// a fixed order (last_block.h). The last block of all can choose rows by their scores. No float atomics, so the bits
// never change from run to run. Scores take the same way as the sums, which therefore have the same bits with and
// without them.
//
// Bytes in flight: at 700 ns of latency, the 8 TB/s of a B200 want 38 KiB of loads on their way on each of its 148
// processors, the 4.8 TB/s of an H200 25 KiB on each of 132. Four blocks of 256 threads with 4 loads of 16 bytes each
// (__launch_bounds__ keeps registers for four) have 64 KiB on their way, and while a quarter of the warps add, 48 KiB.
#pragma once

#include "../common/reduction.h"
#include "../common/score.h"
#include "selection.h"

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

// ---- sums of a thread ----------------------------------------------------------------------------------------------

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

// ---- what the last blocks do ---------------------------------------------------------------------------------------

// Partial sums of the blocks, and the counters at which they arrive; null where each block has all of its sum.
template <typename Acc>
struct Partial {
  Acc* sums = nullptr;
  unsigned* counters = nullptr;
};

// The rows with the largest scores, once all of these are there; null where nobody asks for them. As select_rows has
// them.
template <typename Acc>
struct Chosen {
  int64_t* rows = nullptr;
  int64_t n = 0, wanted = 0, block = 1;  // blocks of rows in a group, and how many of them are taken
  int groups = 1;

  static constexpr int64_t kCountBytes = kBuckets * sizeof(unsigned);
  int64_t shared_bytes() const { return rows ? kCountBytes + n * kKeyBytes<Acc> : 0; }

  // In shared memory that nobody else uses meanwhile.
  __device__ __forceinline__ void choose(const Acc* scores, void* memory) const {
    auto* const counts = static_cast<unsigned*>(memory);
    for (int group = 0; group < groups; ++group) {
      const int64_t first = group * n * block;
      __syncthreads();
      select_of_group<true>(scores + first, n, wanted, block, first, counts, counts + kBuckets,
                            rows + group * wanted * block);
    }
  }
};

// ---- sum_rows ------------------------------------------------------------------------------------------------------

// A matrix as sum_rows reads it. A row of few channels leaves most lanes idle: `repeat` of them are one row of
// `columns`, and the last of these may hold fewer.
struct RowsView {
  int64_t stride, columns, columns_of_last, channels;
  int repeat;
};

// Elements of shared memory in which a block of sum_rows adds up.
template <int vec, typename Acc>
constexpr int kRowsShared = kThreads * (vec > kVec<Acc> ? vec : kVec<Acc>);

// totals[kind][column] = the sums of partial[kind][chunk][column], from which each of some groups of threads takes
// every so many-th chunk.
template <int kinds, int width, typename Acc>
__device__ __forceinline__ void add_chunks(const Acc* partial, int chunks, Acc* shared) {
  constexpr int vec = kVec<Acc>, across = width / vec, groups = kThreads / across;
  const int thread = thread_of_block(), lane = thread % across, group = thread / across;
#pragma unroll
  for (int kind = 0; kind < kinds; ++kind) {
    const Acc* const from = partial + int64_t{kind} * chunks * width + lane * vec;
    Acc sum[vec] = {};
#pragma unroll 4
    for (int chunk = group; chunk < chunks; chunk += groups) {
      const Vector<Acc, vec> loaded = load_vector<vec>(from + int64_t{chunk} * width);
#pragma unroll
      for (int v = 0; v < vec; ++v) sum[v] += loaded.at[v];
    }
#pragma unroll
    for (int v = 0; v < vec; ++v) shared[(kind * groups + group) * width + lane * vec + v] = sum[v];
  }
  __syncthreads();
  Acc total[kinds] = {};
  if (thread < width) {
#pragma unroll
    for (int kind = 0; kind < kinds; ++kind) {
#pragma unroll
      for (int g = 0; g < groups; ++g) total[kind] += shared[(kind * groups + g) * width + thread];
    }
  }
  __syncthreads();
  if (thread < width) {
#pragma unroll
    for (int kind = 0; kind < kinds; ++kind) shared[kind * width + thread] = total[kind];
  }
  __syncthreads();
}

// out[channels] = the sums of src[rows, columns]. A warp reads vec * 32 neighbouring columns; the block's warps take
// every kWarps-th row of its chunk.
template <Score score, typename T, int vec, typename Acc, typename Sum>
__global__ void __launch_bounds__(kThreads, 4)
    sum_rows(const T* __restrict__ src, RowsView view, Chunks rows, Partial<Acc> partial, Targets<Sum, Acc> out,
             Chosen<Acc> chosen) {
  constexpr int width = kLanes * vec, kinds = Sums<score, vec, Acc>::kinds;
  const int64_t first_column = int64_t{blockIdx.x} * width, column = first_column + threadIdx.x * vec;
  int64_t end = rows.end(blockIdx.y), row = rows.begin(blockIdx.y) + threadIdx.y;
  if (end == rows.total && column >= view.columns_of_last) --end;

  Sums<score, vec, Acc> sums;
  if (column < view.columns) {
    const T* p = src + row * view.stride + column;
    const int64_t step = kWarps * view.stride;
    for (; row + (kUnroll - 1) * kWarps < end; row += kUnroll * kWarps, p += kUnroll * step) {
      Vector<T, vec> vectors[kUnroll];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) vectors[u] = load_constant_vector<vec>(p + u * step);
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) sums.add(vectors[u]);
    }
    for (; row < end; row += kWarps, p += step) sums.add(load_constant_vector<vec>(p));
  }

  Acc* const shared = static_cast<Acc*>(dynamic_shared());
  const int thread = thread_of_block();
#pragma unroll
  for (int kind = 0; kind < kinds; ++kind) {
#pragma unroll
    for (int v = 0; v < vec; ++v) {
      shared[(kind * kWarps + threadIdx.y) * width + threadIdx.x * vec + v] = sums.of[kind][v];
    }
  }
  __syncthreads();
  Acc total[kinds] = {};
  if (thread < width) {
#pragma unroll
    for (int kind = 0; kind < kinds; ++kind) {
      Acc lane[kWarps];
#pragma unroll
      for (int w = 0; w < kWarps; ++w) lane[w] = shared[(kind * kWarps + w) * width + thread];
      total[kind] = fold_tree<kWarps>(lane);
    }
  }
  __syncthreads();

  if (gridDim.y > 1) {
    Acc* const of_columns = partial.sums + int64_t{blockIdx.x} * kinds * gridDim.y * width;
    if (thread < width) {
#pragma unroll
      for (int kind = 0; kind < kinds; ++kind) {
        of_columns[(int64_t{kind} * gridDim.y + blockIdx.y) * width + thread] = total[kind];
      }
    }
    if (!arrives_last(partial.counters + blockIdx.x, gridDim.y)) return;
    add_chunks<kinds, width>(of_columns, gridDim.y, shared);
  } else {
    if (thread < width) {
#pragma unroll
      for (int kind = 0; kind < kinds; ++kind) shared[kind * width + thread] = total[kind];
    }
    __syncthreads();
  }

  const int64_t left = view.channels - first_column;  // one block has all repeats
  if (thread < width && thread < left) {
#pragma unroll
    for (int kind = 0; kind < kinds; ++kind) {
      Acc sum = shared[kind * width + thread];
      for (int r = 1; r < view.repeat; ++r) sum += shared[kind * width + r * view.channels + thread];
      out.put(kind, first_column + thread, sum);
    }
  }
  if constexpr (score != Score::none) {
    if (chosen.rows == nullptr || !arrives_last(partial.counters + gridDim.x, gridDim.x)) return;
    chosen.choose(out.scores, shared);
  }
}

// ---- sum_planes ----------------------------------------------------------------------------------------------------

// sum[kind] of each thread, added up over the block: in thread number `kind`.
template <int kinds, typename Acc>
__device__ __forceinline__ Acc add_threads(const Acc (&sums)[kinds]) {
  __shared__ Acc shared[kinds][kWarps];
#pragma unroll
  for (int kind = 0; kind < kinds; ++kind) {
    Acc sum = sums[kind];
#pragma unroll
    for (int half = kLanes / 2; half > 0; half /= 2) sum += __shfl_down_sync(0xffffffffu, sum, half);
    if (threadIdx.x == 0) shared[kind][threadIdx.y] = sum;
  }
  __syncthreads();
  const int thread = thread_of_block();
  return thread < kinds ? fold_tree<kWarps>(shared[thread]) : Acc(0);
}

// out[channels] = the sums of src[outer, channels, inner]. A block takes a chunk of one channel's vectors. Without
// scores blockIdx.z says which of two tensors, `between` elements apart, and for which target.
template <Score score, typename T, int vec, typename Acc, typename Sum>
__global__ void __launch_bounds__(kThreads, 4)
    sum_planes(const T* __restrict__ src, Layout layout, Chunks vectors, int64_t between, Partial<Acc> partial,
               Targets<Sum, Acc> out, Chosen<Acc> chosen) {
  constexpr int kinds = Sums<score, vec, Acc>::kinds;
  const int thread = thread_of_block();
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

  Acc mine[kinds];
#pragma unroll
  for (int kind = 0; kind < kinds; ++kind) mine[kind] = fold_tree<vec>(sums.of[kind]);
  Acc total = add_threads(mine);
  if (gridDim.y > 1) {
    const int64_t number = int64_t{blockIdx.z} * gridDim.x + blockIdx.x;
    Acc* const of_channel = partial.sums + number * kinds * gridDim.y;
    if (thread < kinds) of_channel[int64_t{thread} * gridDim.y + blockIdx.y] = total;
    if (!arrives_last(partial.counters + number, gridDim.y)) return;
#pragma unroll
    for (int kind = 0; kind < kinds; ++kind) {
      mine[kind] = 0;
      for (int chunk = thread; chunk < gridDim.y; chunk += kThreads) {
        mine[kind] += of_channel[int64_t{kind} * gridDim.y + chunk];
      }
    }
    total = add_threads(mine);
  }
  if (thread < kinds) out.put(thread + blockIdx.z, blockIdx.x, total);
  if constexpr (score != Score::none) {
    if (chosen.rows == nullptr || !arrives_last(partial.counters + gridDim.x, gridDim.x)) return;
    chosen.choose(out.scores, dynamic_shared());
  }
}

// ---- launchers -----------------------------------------------------------------------------------------------------

// The memory in which `chunks` blocks share each of `sharers` sums of `elements`.
template <typename Acc>
struct Shared {
  Tensor sums, counters;
  Partial<Acc> partial;

  Shared(const Context& context, int64_t sharers, int64_t chunks, int64_t elements, bool chooses)
      : sums(new_tensor(context.like, {chunks > 1 ? sharers * chunks * elements : 0}, kAccumulatorType<Acc>)),
        counters(chunks > 1 || chooses ? zeroed_counters(context, sharers + 1)
                                       : new_tensor(context.like, {0}, ScalarType::Int)) {
    if (chunks > 1) partial.sums = data_of<Acc>(sums);
    if (chunks > 1 || chooses) partial.counters = data_of<unsigned>(counters);
  }
};

template <Score score, int vec, typename T, typename Sum>
void launch_rows_as(const Context& context, const T* src, int64_t stride, int64_t rows, int64_t columns,
                    const Targets<Sum, Accumulator<T>>& out, const Chosen<Accumulator<T>>& chosen) {
  using Acc = Accumulator<T>;
  constexpr int width = kLanes * vec, kinds = score == Score::none ? 1 : 2;
  const int repeat = rows_repeat(rows, columns, stride, vec);
  const int64_t folded = ceil_div(rows, repeat), left = rows - (folded - 1) * repeat;
  const RowsView view{repeat > 1 ? repeat * stride : stride, repeat * columns, left * columns, columns, repeat};
  const RowsGrid grid = rows_grid(folded, view.columns, vec, context.processors());
  const int64_t chunks = grid.rows.count();
  const Shared<Acc> shared(context, grid.column_blocks, chunks, kinds * width, chosen.rows != nullptr);
  const int64_t bytes = std::max<int64_t>(kinds * kRowsShared<vec, Acc> * sizeof(Acc), chosen.shared_bytes());
  launch(context, sum_rows<score, T, vec, Acc, Sum>, dim3(grid_of(grid.column_blocks), chunks), dim3(kLanes, kWarps),
         bytes, src, view, grid.rows, shared.partial, out, chosen);
}

template <Score score, typename T, typename Sum>
void launch_rows(const Context& context, const T* src, int64_t stride, int64_t rows, int64_t columns,
                 const Targets<Sum, Accumulator<T>>& out, const Chosen<Accumulator<T>>& chosen) {
  if (aligned(src, {stride, columns})) {
    launch_rows_as<score, kVec<T>>(context, src, stride, rows, columns, out, chosen);
  } else {
    launch_rows_as<score, 1>(context, src, stride, rows, columns, out, chosen);
  }
}

// `matrices`: one to sum and score; or, with Score::none, two that are only added from here on.
template <Score score, int vec, typename T, typename Sum>
void launch_planes_as(const Context& context, const T* src, const Layout& layout,
                      const Targets<Sum, Accumulator<T>>& out, const Chosen<Accumulator<T>>& chosen, int matrices = 1,
                      int64_t between = 0) {
  using Acc = Accumulator<T>;
  const Chunks vectors = planes_grid(layout.outer, layout.channels, layout.inner, vec, context.processors());
  const int64_t chunks = vectors.count(), kinds = score == Score::none ? 1 : 2;
  const Shared<Acc> shared(context, matrices * layout.channels, chunks, kinds, chosen.rows != nullptr);
  launch(context, sum_planes<score, T, vec, Acc, Sum>, dim3(grid_of(layout.channels), chunks, matrices),
         dim3(kLanes, kWarps), chosen.shared_bytes(), src, layout, vectors, between, shared.partial, out, chosen);
}

// Whether the rows were chosen, too.
template <Score score, typename T>
bool sum_channels(const Context& context, const T* data, const Layout& layout, const Targets<T, Accumulator<T>>& out,
                  const Chosen<Accumulator<T>>& chosen = {}) {
  using Acc = Accumulator<T>;
  const int64_t width = layout.channels * layout.inner;
  if (layout.is_rows()) {
    launch_rows<score>(context, data, layout.outer_stride, layout.outer, layout.channels, out, chosen);
  } else if (aligned(data, {layout.inner, layout.channel_stride, layout.outer_stride})) {
    launch_planes_as<score, kVec<T>>(context, data, layout, out, chosen);
  } else if (layout.is_dense_planes() && layout.outer >= kMinOuterForRows &&
             aligned(data, {width, layout.outer_stride})) {
    // Planes of an odd size, such as 7 x 7, are not aligned one by one; all planes of an image together are.
    const int kinds = score == Score::none ? 1 : 2;
    Tensor image = new_tensor(context.like, {width * kinds}, kAccumulatorType<Acc>);
    Acc* const sums = data_of<Acc>(image);
    launch_rows<score>(context, data, layout.outer_stride, layout.outer, width, Targets<Acc, Acc>{sums, sums + width},
                       {});
    const Layout planes{1, layout.channels, layout.inner, width, layout.inner, 1};
    launch_planes_as<Score::none, 1>(context, static_cast<const Acc*>(sums), planes, out, {}, kinds, width);
    return false;
  } else {
    launch_planes_as<score, 1>(context, data, layout, out, chosen);
  }
  return true;
}

// The layout of dy, of a copy where it does not fold; dy then becomes that copy.
inline Layout foldable(Tensor& dy, int64_t dim) {
  return layout_or_copy(dy, [&](const Tensor& t) {
    const std::optional<Layout> folded = fold(t, dim);
    return folded && (folded->is_rows() || folded->is_planes()) ? folded : std::nullopt;
  });
}

}  // namespace wuskern
