// The same products without tensor cores: float32 exactly, float64, and what the others cannot index. Any strides.
//
// A block of 256 threads computes 64 x 64 results, 16 terms at a time, a thread 4 x 4 of them. The terms of a stage are
// added up before they join the sum, which keeps long sums of float32 as exact as those of a library.
#pragma once

#include "../common/pixels.h"
#include "pack.h"
#include "packed.h"

namespace wuskern {

constexpr int kSimtTile = 64, kSimtDepth = 16, kSimtThreads = 256;
constexpr int kSimtLoads = kSimtTile * kSimtDepth / kSimtThreads;  // of a thread for a stage and operand
constexpr int kSimtStep = kSimtThreads / kSimtTile;                // terms from one of its loads to the next

template <typename Acc>
struct SimtStage {
  Acc a[kSimtDepth][kSimtTile], b[kSimtDepth][kSimtTile];
};

// acc[m, n] += sum of a[m] b[n] over `stages` stages. load(a, b) gives this thread's next elements of both operands:
// column threadIdx.x % kSimtTile, terms threadIdx.x / kSimtTile and every kSimtStep-th after it.
template <typename Acc, class Load>
__device__ __forceinline__ void simt_sum(Acc (&acc)[4][4], int64_t stages, Load&& load) {
  __shared__ SimtStage<Acc> stage;
  const int column = threadIdx.x % kSimtTile, term = threadIdx.x / kSimtTile;
  const int m = threadIdx.x / 16 * 4, n = threadIdx.x % 16 * 4;
  Acc a[kSimtLoads], b[kSimtLoads];
  for (int64_t s = 0; s <= stages; ++s) {  // loads of a stage are on their way while the one before is multiplied
    if (s < stages) load(a, b);
    if (s > 0) {
      Acc part[4][4] = {};
#pragma unroll
      for (int d = 0; d < kSimtDepth; ++d) {
        Acc x[4], y[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          x[i] = stage.a[d][m + i];
          y[i] = stage.b[d][n + i];
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
#pragma unroll
          for (int j = 0; j < 4; ++j) part[i][j] += x[i] * y[j];
        }
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) acc[i][j] += part[i][j];
      }
    }
    if (s == stages) return;
    __syncthreads();  // all have used the stage before
#pragma unroll
    for (int i = 0; i < kSimtLoads; ++i) {
      stage.a[term + i * kSimtStep][column] = a[i];
      stage.b[term + i * kSimtStep][column] = b[i];
    }
    __syncthreads();
  }
}

// dW: features of x along m, rows along n, output pixels are the terms.
template <typename T, typename Use>
__device__ __forceinline__ void simt_wgrad_sum(const T* __restrict__ dy, const T* __restrict__ x,
                                               const RowProduct& problem, const WgradSchedule& schedule, Use&& use) {
  using Acc = Accumulator<T>;
  const WgradSchedule::Place place = schedule.at(blockIdx.x);
  const int64_t first = schedule.first_step(place.split), last = schedule.first_step(place.split + 1);
  const int64_t m0 = place.feature_block * kSimtTile, n0 = place.row_block * kSimtTile;
  const int64_t feature = m0 + threadIdx.x % kSimtTile, row = n0 + threadIdx.x % kSimtTile;

  const bool is_feature = feature < problem.features(), is_row = row < problem.k;
  const int64_t tap = feature / problem.channels, channel = feature % problem.channels;
  const int64_t tap_h = tap / problem.w.taps * problem.h.dilation - problem.h.padding;
  const int64_t tap_w = tap % problem.w.taps * problem.w.dilation - problem.w.padding;
  const Pixels &in = problem.input, &out = problem.dy;
  const T* const x_channel = x + (place.group * problem.channels + channel) * in.channel_stride;
  const int64_t unit = place.group * problem.k + row;
  const T* const dy_row = dy + (is_row && problem.rows ? problem.rows[unit] : unit) * out.channel_stride;

  int64_t pixel = first * kSimtDepth + threadIdx.x / kSimtTile;
  PixelWalk walk(out.height, out.width, pixel, kSimtStep);
  Acc acc[4][4] = {};
  simt_sum(acc, last - first, [&](Acc(&a)[kSimtLoads], Acc(&b)[kSimtLoads]) {
#pragma unroll
    for (int i = 0; i < kSimtLoads; ++i, pixel += kSimtStep, walk.advance()) {
      const PixelPlace at = walk.at;
      const bool there = at.image < out.batch;
      const int64_t y = at.y * problem.h.stride + tap_h, z = at.x * problem.w.stride + tap_w;
      const bool inside = there && is_feature && y >= 0 && y < in.height && z >= 0 && z < in.width;
      a[i] =
          inside ? static_cast<Acc>(x_channel[at.image * in.image_stride + y * in.h_stride + z * in.w_stride]) : Acc(0);
      b[i] = there && is_row
                 ? static_cast<Acc>(dy_row[at.image * out.image_stride + at.y * out.h_stride + at.x * out.w_stride])
                 : Acc(0);
    }
  });
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < 4; ++j) {
      const int64_t f = m0 + threadIdx.x / 16 * 4 + i, r = n0 + threadIdx.x % 16 * 4 + j;
      if (f < problem.features() && r < problem.k) use(place.split, place.group * problem.k + r, f, acc[i][j]);
    }
  }
}

// dX: pixels of the input along m, channels along n, taps and rows are the terms.
template <typename T>
__global__ void __launch_bounds__(kSimtThreads, 1)
    simt_dgrad(const T* __restrict__ dy, const T* __restrict__ weight, RowProduct problem, Taps taps,
               DgradSchedule schedule, Divisor k, T* __restrict__ dx) {
  using Acc = Accumulator<T>;
  const DgradSchedule::Place place = schedule.at(blockIdx.x);
  const Pixels &in = problem.input, &out = problem.dy;
  const int64_t m0 = place.pixel_block * kSimtTile, n0 = place.column_block * kSimtTile;
  const int64_t pixel = m0 + threadIdx.x % kSimtTile, channel = n0 + threadIdx.x % kSimtTile;
  const bool is_pixel = pixel < in.count(), is_channel = channel < problem.channels;
  const PixelPlace at = PixelWalk(in.height, in.width, pixel, 0).at;
  const int64_t terms = problem.k * problem.h.taps * problem.w.taps;

  int64_t term = threadIdx.x / kSimtTile;
  Acc acc[4][4] = {};
  simt_sum(acc, ceil_div(terms, kSimtDepth), [&](Acc(&a)[kSimtLoads], Acc(&b)[kSimtLoads]) {
#pragma unroll
    for (int u = 0; u < kSimtLoads; ++u, term += kSimtStep) {
      a[u] = b[u] = 0;
      if (term >= terms) continue;
      const uint32_t tap = k.quotient(static_cast<uint32_t>(term));
      const int64_t unit = place.group * problem.k + (term - int64_t{tap} * k.value);
      const int i = static_cast<int>(tap) / problem.w.taps, j = static_cast<int>(tap) % problem.w.taps;
      const int y = static_cast<int>(at.y) + problem.h.padding - i * problem.h.dilation;
      const int x = static_cast<int>(at.x) + problem.w.padding - j * problem.w.dilation;
      const bool meets = is_pixel && y >= 0 && x >= 0 && y % problem.h.stride == 0 && x % problem.w.stride == 0 &&
                         y / problem.h.stride < out.height && x / problem.w.stride < out.width;
      if (meets) {
        const int64_t line = y / problem.h.stride * out.h_stride + x / problem.w.stride * out.w_stride;
        const int64_t row = problem.rows ? problem.rows[unit] : unit;
        a[u] = static_cast<Acc>(dy[at.image * out.image_stride + line + row * out.channel_stride]);
      }
      if (is_channel) {
        b[u] = static_cast<Acc>(weight[problem.units[unit] * taps.row_stride + channel * taps.channel_stride +
                                       i * taps.h_stride + j * taps.w_stride]);
      }
    }
  });
  for (int i = 0; i < 4; ++i) {
    const int64_t m = m0 + threadIdx.x / 16 * 4 + i;
    if (m >= in.count()) continue;
    T* const to = dx + in.offset(m);
    for (int j = 0; j < 4; ++j) {
      const int64_t c = n0 + threadIdx.x % 16 * 4 + j;
      if (c >= problem.channels) continue;
      to[(place.group * problem.channels + c) * in.channel_stride] = static_cast<T>(acc[i][j]);
    }
  }
}

}  // namespace wuskern
