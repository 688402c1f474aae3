// The kernel of rowsparse_dgrad on tensor cores: a block computes one tile of dX. See rowsparse_dgrad.cu.
#pragma once

#include "pack.h"
#include "sources.h"

namespace wuskern {
namespace {

// Where dX lies: strides in elements.
template <typename T>
struct DgradOutput {
  T* dx;
  int64_t image_stride, channel_stride, h_stride, w_stride;
  int64_t channels;  // of a group
  bool in_eights;    // whether 8 neighbouring channels can be written at once
};

// dX of a Linear, or of a convolution that is one: tokens are images.
template <typename T>
struct LinearProblem {
  MatrixColumns<T> dy;
  GatheredRows<T> weight;
  int k, padded_k;
  DgradSchedule schedule;
  DgradOutput<T> output;

  int64_t terms() const { return padded_k; }

  struct OfBlock {
    const LinearProblem& all;
    const typename MatrixColumns<T>::OfThread dy;
    const typename GatheredRows<T>::OfThread weight;
    int64_t first;
    int end;

    // Of m of the tile in dX; negative where there is no such token.
    __device__ __forceinline__ int64_t place(int m) const {
      return first + m < all.dy.rows ? (first + m) * all.output.image_stride : -1;
    }
  };
  template <int n>
  __device__ __forceinline__ OfBlock at(const DgradSchedule::Place& place) const {
    const int64_t first = place.pixel_block * kTileM, column = place.column_block * n + column_of<n>();
    return {*this, dy.at(first, padded_k), weight.at(0, column, k), first, padded_k};
  }
};

template <typename T>
struct ConvProblem {
  PhasePixels<T> dy;
  MatrixRows<T> weight;
  int64_t dy_group, weight_group;  // elements from a group to the next
  DgradSchedule schedule;
  DgradOutput<T> output;

  // Of a sum, on average over the phases.
  int64_t terms() const {
    const Side &h = dy.phases.h, &w = dy.phases.w;
    return int64_t{h.taps} * w.taps * dy.k.value / (int64_t{h.stride} * w.stride);
  }

  struct OfBlock {
    const ConvProblem& all;
    int phase_h, phase_w;
    const typename PhasePixels<T>::OfThread dy;
    const typename MatrixRows<T>::OfThread weight;
    int64_t first;
    int end;

    __device__ __forceinline__ int64_t place(int m) const {
      const Phases& phases = all.dy.phases;
      const Phases::Pixel pixel = phases.pixel(first + m, phase_h, phase_w);
      if (pixel.image < 0) return -1;
      return pixel.image * all.output.image_stride + (phase_h + pixel.y * phases.h.stride) * all.output.h_stride +
             (phase_w + pixel.x * phases.w.stride) * all.output.w_stride;
    }
  };
  template <int n>
  __device__ __forceinline__ OfBlock at(const DgradSchedule::Place& place) const {
    const Phases& phases = dy.phases;
    const int phase_h = static_cast<int>(place.phase) / phases.w.stride;
    const int phase_w = static_cast<int>(place.phase) % phases.w.stride;
    const PhaseTaps of_h = phases.h.taps_of(phase_h), of_w = phases.w.taps_of(phase_w);
    const int64_t first = place.pixel_block * kTileM, column = place.column_block * n + column_of<n>();
    const int end = of_h.count * of_w.count * static_cast<int>(dy.k.value);
    const int64_t before = (int64_t{of_h.before} * phases.w.taps + int64_t{of_h.count} * of_w.before) * dy.k.value;
    return {*this,
            phase_h,
            phase_w,
            dy.at(place.group * dy_group, first, phase_h, phase_w, of_h, of_w),
            weight.at(place.group * weight_group + before * weight.stride, column, end),
            first,
            end};
  }
};

template <typename T, int n, bool wgmma, class Problem>
__device__ __forceinline__ void dgrad_tile(const Problem& problem) {
  const DgradSchedule::Place place = problem.schedule.at(blockIdx.x);
  const auto block = problem.template at<n>(place);
  Multiplier<T, n, wgmma> multiplier;
  sum_products<T, n, false>(
      multiplier, 0, block.end, [&](uint32_t tile, int depth) { load_columns(tile, depth, block.dy); },
      [&](uint32_t tile, int depth) { load_rows<n>(tile, depth, block.weight); });

  constexpr int stride = n + 8;  // no bank conflicts
  T* const tile = reinterpret_cast<T*>(tile_memory());
  __syncthreads();  // nobody reads a stage any more, and none is on its way
  multiplier.for_results([&](int m, int column, float v0, float v1) {
    tile[m * stride + column] = static_cast<T>(v0);
    tile[m * stride + column + 1] = static_cast<T>(v1);
  });
  __syncthreads();
  const DgradOutput<T>& output = problem.output;
  T* const group = output.dx + place.group * output.channels * output.channel_stride;
  for (int i = threadIdx.x; i < kTileM * n / 8; i += kGemmThreads) {
    // Neighbouring threads write neighbours in memory.
    const int m = output.in_eights ? i / (n / 8) : i % kTileM, chunk = output.in_eights ? i % (n / 8) : i / kTileM;
    const int64_t at = block.place(m), channel = place.column_block * n + chunk * 8;
    if (at < 0 || channel >= output.channels) continue;
    const T* const from = tile + m * stride + chunk * 8;
    if (output.in_eights) {
      *reinterpret_cast<uint4*>(group + at + channel) = *reinterpret_cast<const uint4*>(from);
      continue;
    }
    for (int e = 0; e < 8 && channel + e < output.channels; ++e) {
      group[at + (channel + e) * output.channel_stride] = from[e];
    }
  }
}

template <typename T, int n, class Problem>
__global__ void __launch_bounds__(kGemmThreads, tile_blocks(n, kHasWgmma)) dgrad(const Problem problem) {
  choose_instruction<n>([&](auto wgmma) { dgrad_tile<T, n, wgmma>(problem); });
}

}  // namespace
}  // namespace wuskern
