// The kernels of rowsparse_wgrad: a block sums its part of one tile of dW; partial sums are added. See
// rowsparse_wgrad.cu.
#pragma once

#include "packed.h"
#include "simt.h"
#include "sources.h"

namespace wuskern {
namespace {

// Where element `feature` of a row of dW lies in it: sums have [taps, channels], channels filled up to `padded`, and dW
// has [channels, taps].
struct FeatureOrder {
  Divisor padded;
  int64_t channels, taps;

  // Or -1 of a channel that is not one.
  __device__ __forceinline__ int64_t place(int64_t feature) const {
    const int64_t tap = padded.quotient(static_cast<uint32_t>(feature)), channel = feature - tap * padded.value;
    return channel < channels ? channel * taps + tap : -1;
  }
};

// dW, and the partial sums [split, row, feature] where there are several.
template <typename T, typename Acc>
struct WgradOutput {
  T* dw;
  Acc* parts;
  int64_t rows, features;
  FeatureOrder order;

  __device__ __forceinline__ void write(int64_t split, int64_t row, int64_t feature, Acc sum) const {
    if (parts) {
      parts[(split * rows + row) * features + feature] = sum;
    } else if (const int64_t place = order.place(feature); place >= 0) {
      dw[row * order.channels * order.taps + place] = static_cast<T>(sum);
    }
  }
};

// Four neighbouring sums of a row; features come in eights.
template <typename T>
__device__ __forceinline__ void write_four(const WgradOutput<T, float>& output, int64_t split, int64_t row,
                                           int64_t feature, const float4& sums) {
  if (output.parts) {
    *reinterpret_cast<float4*>(output.parts + (split * output.rows + row) * output.features + feature) = sums;
    return;
  }
  const float each[4] = {sums.x, sums.y, sums.z, sums.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) output.write(split, row, feature + i, each[i]);
}

// On tensor cores. `k` rows of a group; x and dy have so many elements for one.
template <typename T, class X>
struct WgradProblem {
  X x;
  MatrixRows<T> dy;
  int64_t k, tokens, x_group, dy_group;
  WgradSchedule schedule;
  WgradOutput<T, float> output;
};

template <typename T, int n, bool wgmma, class X>
__device__ __forceinline__ void wgrad_tile_sum(const WgradProblem<T, X>& problem) {
  const WgradSchedule::Place place = problem.schedule.at(blockIdx.x);
  const int begin = static_cast<int>(problem.schedule.first_step(place.split) * kTileDepth);
  const int end = static_cast<int>(min(problem.schedule.first_step(place.split + 1) * kTileDepth, problem.tokens));
  const int64_t m0 = place.feature_block * kTileM, n0 = place.row_block * n;
  const auto x = problem.x.at(place.group * problem.x_group, m0 + column_of<kTileM>(), end);
  const auto dy = problem.dy.at(place.group * problem.dy_group, n0 + column_of<n>(), end);

  Multiplier<T, n, wgmma> multiplier;
  sum_products<T, n, true>(
      multiplier, begin, end, [&](uint32_t tile, int depth) { load_rows<kTileM>(tile, depth, x); },
      [&](uint32_t tile, int depth) { load_rows<n>(tile, depth, dy); });

  // Through shared memory: the sums of a thread lie apart.
  constexpr int stride = kTileM + 4;  // no bank conflicts
  float* const tile = reinterpret_cast<float*>(tile_memory());
  static_assert(n * stride * sizeof(float) <= tile_shared_bytes(n));
  __syncthreads();  // nobody reads a stage any more, and none is on its way
  multiplier.for_results([&](int m, int column, float v0, float v1) {
    tile[column * stride + m] = v0;
    tile[(column + 1) * stride + m] = v1;
  });
  __syncthreads();
  const int features = static_cast<int>(min(problem.output.features - m0, int64_t{kTileM}));
  const int rows = static_cast<int>(min(problem.k - n0, int64_t{n})), m = threadIdx.x % (kTileM / 4) * 4;
  if (m >= features) return;
#pragma unroll 4
  for (int row = threadIdx.x / (kTileM / 4); row < rows; row += kGemmThreads / (kTileM / 4)) {
    const float4 sums = *reinterpret_cast<const float4*>(tile + row * stride + m);
    write_four(problem.output, place.split, place.group * problem.k + n0 + row, m0 + m, sums);
  }
}

template <typename T, int n, class X>
__global__ void __launch_bounds__(kGemmThreads, tile_blocks(n, kHasWgmma)) wgrad(const WgradProblem<T, X> problem) {
  choose_instruction<n>([&](auto wgmma) { wgrad_tile_sum<T, n, wgmma>(problem); });
}

template <typename T>
__global__ void __launch_bounds__(kSimtThreads)
    simt_wgrad(const T* __restrict__ dy, const T* __restrict__ x, const RowProduct problem,
               const WgradSchedule schedule, const WgradOutput<T, Accumulator<T>> output) {
  simt_wgrad_sum(dy, x, problem, schedule, [&](int64_t split, int64_t row, int64_t feature, auto sum) {
    output.write(split, row, feature, sum);
  });
}

constexpr int kParts = 4;  // loads of a thread on their way

// dW from the partial sums, added from the first to the last.
template <typename T, typename Acc>
__global__ void __launch_bounds__(kPackThreads) add_parts(const WgradOutput<T, Acc> output, int64_t splits) {
  const int64_t i = int64_t{blockIdx.x} * kPackThreads + threadIdx.x, size = output.rows * output.features;
  if (i >= size) return;
  const int64_t row = i / output.features, place = output.order.place(i - row * output.features);
  if (place < 0) return;
  const Acc* p = output.parts + i;
  Acc sum = 0;
  int64_t split = 0;
  for (; split + kParts <= splits; split += kParts) {
    Acc part[kParts];
#pragma unroll
    for (int u = 0; u < kParts; ++u, p += size) part[u] = *p;
#pragma unroll
    for (int u = 0; u < kParts; ++u) sum += part[u];
  }
  for (; split < splits; ++split, p += size) sum += *p;
  output.dw[row * output.order.channels * output.order.taps + place] = static_cast<T>(sum);
}

}  // namespace
}  // namespace wuskern
