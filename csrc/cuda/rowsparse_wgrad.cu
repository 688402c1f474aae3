// rowsparse_wgrad and rowsparse_wgrad_conv2d on NVIDIA GPUs: dW[k, features] = dY[tokens, rows]^T X[tokens, features].
//
// The features are the m of a tile and the chosen rows, few, its n. Few tiles and a long sum: the tokens are split over
// blocks, which leave their sums in fp32, and those are added in their order: by the last block of a tile, where it has
// not too many to add, else in a launch of their own. The 16-bit formats take tensor cores; x
// and dy are read where they lie if 8 neighbours are 16 bytes, else from copies (NCHW too). float32 takes ordinary
// arithmetic and is exact, whatever TF32 is allowed; float64 too.
#include "../common/pixels.h"
#include "conv2d_operands.h"
#include "last_block.h"
#include "simt.h"
#include "vectors.h"

namespace wuskern {
namespace {

constexpr int kParts = 4;  // loads of a thread on their way

// ---- where sums go -------------------------------------------------------------------------------------------------

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
  unsigned* counters;  // for each tile: null where its blocks leave the sums to another launch
  int64_t rows, features;
  FeatureOrder order;

  __device__ __forceinline__ void write(int64_t row, int64_t feature, Acc sum) const {
    if (const int64_t place = order.place(feature); place >= 0) {
      dw[row * order.channels * order.taps + place] = static_cast<T>(sum);
    }
  }
  __device__ __forceinline__ void write(int64_t split, int64_t row, int64_t feature, Acc sum) const {
    if (parts) {
      parts[(split * rows + row) * features + feature] = sum;
    } else {
      write(row, feature, sum);
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
  for (int i = 0; i < 4; ++i) output.write(row, feature + i, each[i]);
}

// Four neighbours of dW from their partial sums, added from the first to the last.
template <typename T>
__device__ __forceinline__ void join_four(const WgradOutput<T, float>& output, int splits, int64_t row,
                                          int64_t feature) {
  const float* p = output.parts + row * output.features + feature;
  const int64_t size = output.rows * output.features;
  float sums[4] = {};
#pragma unroll 8
  for (int split = 0; split < splits; ++split, p += size) {
    const float4 part = *reinterpret_cast<const float4*>(p);
    sums[0] += part.x;
    sums[1] += part.y;
    sums[2] += part.z;
    sums[3] += part.w;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) output.write(row, feature + i, sums[i]);
}

// ---- kernels -------------------------------------------------------------------------------------------------------

// What the kernel on tensor cores is given. `k` rows of a group; x and dy have so many elements for one.
template <typename T, class X>
struct TensorCoreWgrad {
  X x;
  MatrixRows<T> dy;
  int64_t k, tokens, x_group, dy_group;
  WgradSchedule schedule;
  WgradOutput<T, float> output;
};

// `used`: of the columns of a tile, see wgrad_columns.
template <typename T, int used, bool wgmma, class X>
__device__ __forceinline__ void write_tile(const TensorCoreWgrad<T, X>& wgrad) {
  constexpr int n = tile_of_columns(used);
  const WgradSchedule::Place place = wgrad.schedule.at(blockIdx.x);
  const int begin = static_cast<int>(wgrad.schedule.first_step(place.split) * kTileDepth);
  const int end = static_cast<int>(min(wgrad.schedule.first_step(place.split + 1) * kTileDepth, wgrad.tokens));
  const int64_t m0 = place.feature_block * kTileM, n0 = place.row_block * n;
  auto x = wgrad.x.template at<kTileM>(place.group * wgrad.x_group, m0 + column_of<kTileM>(), begin, end);
  auto dy = wgrad.dy.template at<n>(place.group * wgrad.dy_group, n0 + column_of<n>(), begin, end);

  Multiplier<T, n, wgmma, used> multiplier;
  sum_products<T, n, true>(
      multiplier, begin, end, [&](uint32_t tile, int depth) { x.template load<kTileM>(tile, depth); },
      [&](uint32_t tile, int depth) { dy.template load<n>(tile, depth); });

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
  const int features = static_cast<int>(min(wgrad.output.features - m0, int64_t{kTileM}));
  const int rows = static_cast<int>(min(wgrad.k - n0, int64_t{n})), m = threadIdx.x % (kTileM / 4) * 4;
  const int first = m < features ? threadIdx.x / (kTileM / 4) : rows, step = kGemmThreads / (kTileM / 4);
  const int64_t row0 = place.group * wgrad.k + n0;
#pragma unroll 4
  for (int row = first; row < rows; row += step) {
    const float4 sums = *reinterpret_cast<const float4*>(tile + row * stride + m);
    write_four(wgrad.output, place.split, row0 + row, m0 + m, sums);
  }
  if (wgrad.output.counters == nullptr) return;
  const int splits = static_cast<int>(wgrad.schedule.splits);
  unsigned* const counter = wgrad.output.counters + wgrad.schedule.tile(blockIdx.x);
  if (!arrives_last(counter, splits, reinterpret_cast<bool*>(tile))) return;  // wgmma's tiles leave no other memory
#pragma unroll 2
  for (int row = first; row < rows; row += step) join_four(wgrad.output, splits, row0 + row, m0 + m);
}

template <typename T, int used, class X>
__global__ void __launch_bounds__(kGemmThreads, tile_blocks(tile_of_columns(used), kHasWgmma))
    wgrad(const TensorCoreWgrad<T, X> arguments) {
  choose_instruction<tile_of_columns(used), used>([&](auto wgmma) { write_tile<T, used, wgmma>(arguments); });
}

// Without: features of x along m, rows along n, output pixels are the terms; any strides.
template <typename T>
__global__ void __launch_bounds__(kSimtThreads)
    simt_wgrad(const T* __restrict__ dy, const T* __restrict__ x, const RowSparseConv2d conv,
               const WgradSchedule schedule, const WgradOutput<T, Accumulator<T>> output) {
  using Acc = Accumulator<T>;
  const WgradSchedule::Place place = schedule.at(blockIdx.x);
  const int64_t first = schedule.first_step(place.split), last = schedule.first_step(place.split + 1);
  const int64_t m0 = place.feature_block * kSimtTile, n0 = place.row_block * kSimtTile;
  const int64_t feature = m0 + threadIdx.x % kSimtTile, row = n0 + threadIdx.x % kSimtTile;

  const bool is_feature = feature < conv.features(), is_row = row < conv.k;
  const int64_t tap = feature / conv.channels, channel = feature % conv.channels;
  const int64_t tap_h = tap / conv.w.taps * conv.h.dilation - conv.h.padding;
  const int64_t tap_w = tap % conv.w.taps * conv.w.dilation - conv.w.padding;
  const Pixels &in = conv.input, &out = conv.dy;
  const T* const x_channel = x + (place.group * conv.channels + channel) * in.channel_stride;
  const int64_t unit = place.group * conv.k + row;
  const T* const dy_row = dy + (is_row && conv.rows ? conv.rows[unit] : unit) * out.channel_stride;

  int64_t pixel = first * kSimtDepth + threadIdx.x / kSimtTile;
  PixelWalk walk(out.height, out.width, pixel, kSimtStep);
  Acc acc[4][4] = {};
  simt_sum(acc, last - first, [&](Acc(&a)[kSimtLoads], Acc(&b)[kSimtLoads]) {
#pragma unroll
    for (int i = 0; i < kSimtLoads; ++i, pixel += kSimtStep, walk.advance()) {
      const PixelPlace at = walk.at;
      const bool there = at.image < out.batch;
      const int64_t y = at.y * conv.h.stride + tap_h, z = at.x * conv.w.stride + tap_w;
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
      if (f < conv.features() && r < conv.k) output.write(place.split, place.group * conv.k + r, f, acc[i][j]);
    }
  }
}

// dW from the partial sums, added from the first to the last.
template <typename T, typename Acc>
__global__ void __launch_bounds__(kCopyThreads) add_parts(const WgradOutput<T, Acc> output, int64_t splits) {
  const int64_t i = int64_t{blockIdx.x} * kCopyThreads + threadIdx.x, size = output.rows * output.features;
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

// ---- launchers -----------------------------------------------------------------------------------------------------

// Runs body(output) with room for the partial sums where there are several, and adds those unless its blocks do.
// `width`: the channels of a group, filled up.
template <typename T, typename Acc, class Body>
void with_parts(const Context& context, const RowSparseConv2d& conv, Tensor& dw, const WgradSchedule& schedule,
                int64_t width, bool blocks_join, Body&& body) {
  const int64_t rows = conv.groups * conv.k, features = conv.taps() * width;
  const bool split = schedule.splits > 1, joined = split && blocks_join;
  Tensor parts = new_tensor(dw, {split ? schedule.splits * rows * features : 0}, kAccumulatorType<Acc>);
  Tensor counters = joined ? zeroed_counters(context, schedule.tiles()) : new_tensor(dw, {0}, ScalarType::Int);
  const WgradOutput<T, Acc> output{data_of<T>(dw),
                                   split ? data_of<Acc>(parts) : nullptr,
                                   joined ? data_of<unsigned>(counters) : nullptr,
                                   rows,
                                   features,
                                   FeatureOrder{Divisor(width), conv.channels, conv.taps()}};
  body(output);
  if (!split || joined) return;
  launch(context, add_parts<T, Acc>, grid_of(ceil_div(rows * features, kCopyThreads)), kCopyThreads, 0, output,
         schedule.splits);
}

template <typename T, class X>
void launch_wgrad(const Context& context, const RowSparseConv2d& conv, const X& x, int64_t x_width,
                  const AlignedPixels& dy, Tensor& dw) {
  const int64_t features = x_width * conv.taps(), tokens = conv.dy.count();
  const Gpu gpu = gpu_of(context);
  const auto launch_tiles = [&]<int used>(std::integral_constant<int, used>) {
    constexpr int n = tile_of_columns(used);
    const WgradSchedule schedule =
        wgrad_schedule(conv.groups, features, conv.k, tokens, {kTileM, n, kTileDepth}, gpu.blocks(n));
    with_parts<T, float>(context, conv, dw, schedule, x_width, blocks_join(schedule.splits, conv.k, n),
                         [&](const WgradOutput<T, float>& output) {
                           const TensorCoreWgrad<T, X> arguments{x,       matrix_rows<T>(dy), conv.k,   tokens,
                                                                 x_width, dy.width,           schedule, output};
                           launch(context, wgrad<T, used, X>, grid_of(schedule.blocks()), kGemmThreads,
                                  tile_shared_bytes(n), arguments);
                         });
  };
  for_tile_width<32, 64, 96, 128, 160, 192, 208, kWidestTile>(wgrad_columns(conv.k, gpu), launch_tiles);
}

template <typename T>
void tensor_core_wgrad(const Context& context, const RowSparseConv2d& conv, const Tensor& dy, const Tensor& x,
                       Tensor& dw) {
  const AlignedPixels rows = aligned_pixels(context, dy, conv.dy, {conv.rows, conv.groups, conv.k}, true, false);
  const AlignedPixels input =
      aligned_pixels(context, x, conv.input, {nullptr, conv.groups, conv.channels}, false, true);
  if (conv.is_linear() && one_by_one(input.pixels).is_matrix()) {
    launch_wgrad<T>(context, conv, matrix_rows<T>(input), input.width, rows, dw);
  } else {
    launch_wgrad<T>(context, conv, pixel_rows<T>(input, conv), input.width, rows, dw);
  }
}

void run(const Context& context, const RowSparseConv2d& conv, const Tensor& dy, const Tensor& x, Tensor& dw) {
  check_counts(conv.taps(), conv.channels, conv.k);
  const bool cores = takes_tensor_cores(dy.scalar_type(), conv);
  for_dtype<__half, __nv_bfloat16>(dy.scalar_type(), [&]<typename T>(std::type_identity<T>) {
    if constexpr (sizeof(T) == 2) {
      if (cores) return tensor_core_wgrad<T>(context, conv, dy, x, dw);
    }
    using Acc = Accumulator<T>;
    const WgradSchedule schedule = wgrad_schedule(conv.groups, conv.features(), conv.k, conv.dy.count(),
                                                  {kSimtTile, kSimtTile, kSimtDepth}, 4 * context.processors());
    with_parts<T, Acc>(context, conv, dw, schedule, conv.channels, false, [&](const WgradOutput<T, Acc>& output) {
      launch(context, simt_wgrad<T>, grid_of(schedule.blocks()), kSimtThreads, 0, const_data_of<T>(dy),
             const_data_of<T>(x), conv, schedule, output);
    });
  });
}

// ---- ops -----------------------------------------------------------------------------------------------------------

Tensor rowsparse_wgrad(Tensor dy, Tensor x, Tensor rows) {
  check_wgrad(dy, x, rows);
  const Context context(dy);
  const int64_t k = rows.numel(), features = x.size(-1);
  Tensor dw = new_tensor(x, {k, features});
  if (k == 0 || x.numel() == 0) return torch::stable::zero_(dw);
  make_contiguous(rows);
  const int64_t* const chosen = dy.size(-1) == k ? nullptr : indices_of(rows);
  const Pixels dy_pixels = matrix_pixels(dy), x_pixels = matrix_pixels(x);
  run(context, {dy_pixels, x_pixels, chosen, nullptr, kOneTap, kOneTap, 1, k, features}, dy, x, dw);
  return dw;
}

Tensor rowsparse_wgrad_conv2d(Tensor dy, Tensor x, Tensor rows, Pair kernel_size, Pair stride, Pair padding,
                              Pair dilation, int64_t groups) {
  const Geometry geometry{kernel_size, stride, padding, dilation, groups};
  check_wgrad_conv2d(dy, x, rows, geometry);
  const Context context(dy);
  const int64_t k = rows.numel(), channels = x.size(1) / groups;
  Tensor dw = new_tensor(x, {k, channels, kernel_size[0], kernel_size[1]});
  if (dw.numel() == 0 || dy.numel() == 0 || x.numel() == 0) return torch::stable::zero_(dw);
  make_contiguous(rows);
  const int64_t* const chosen = dy.size(1) == k ? nullptr : indices_of(rows);
  const Side h = side_of(geometry, 0), w = side_of(geometry, 1);
  run(context, {image_pixels(dy), image_pixels(x), chosen, nullptr, h, w, groups, k / groups, channels}, dy, x, dw);
  return dw;
}

}  // namespace
}  // namespace wuskern

STABLE_TORCH_LIBRARY_IMPL(wuskern_native, CUDA, m) {
  m.impl("rowsparse_wgrad", TORCH_BOX(&wuskern::rowsparse_wgrad));
  m.impl("rowsparse_wgrad_conv2d", TORCH_BOX(&wuskern::rowsparse_wgrad_conv2d));
}
