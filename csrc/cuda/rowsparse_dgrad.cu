// rowsparse_dgrad and rowsparse_dgrad_conv2d on NVIDIA GPUs: dX[tokens, features] = dY[tokens, rows] W[rows, features].
//
// The sum is short, k terms for each tap, and dX is large: writing it bounds the time. A block writes its tile through
// shared memory, 16 bytes at a time where dX lets it. The 16-bit formats take tensor cores: dy comes copied, rows of a
// Linear's weight are gathered where they lie, a convolution's are copied by tap. Pixels of a convolution with strides
// come in phases that meet the same taps. float32 takes ordinary arithmetic and is exact; float64 too.
#include "../common/pixels.h"
#include "conv2d_operands.h"
#include "simt.h"
#include "vectors.h"

namespace wuskern {
namespace {

// ---- kernels -------------------------------------------------------------------------------------------------------

// On tensor cores: of a LinearDgrad or a Conv2dDgrad.
template <typename T, int n, bool wgmma, class Dgrad>
__device__ __forceinline__ void write_tile(const Dgrad& dgrad) {
  const DgradSchedule::Place place = dgrad.schedule.at(blockIdx.x);
  auto block = dgrad.template at<n>(place);
  Multiplier<T, n, wgmma> multiplier;
  sum_products<T, n, false>(
      multiplier, 0, block.end, [&](uint32_t tile, int depth) { load_columns(tile, depth, block.dy); },
      [&](uint32_t tile, int depth) { block.weight.template load<n>(tile, depth); });

  constexpr int stride = n + 8;  // no bank conflicts
  T* const tile = reinterpret_cast<T*>(tile_memory());
  __syncthreads();  // nobody reads a stage any more, and none is on its way
  multiplier.for_results([&](int m, int column, float v0, float v1) {
    tile[m * stride + column] = static_cast<T>(v0);
    tile[m * stride + column + 1] = static_cast<T>(v1);
  });
  __syncthreads();
  const DgradOutput<T>& output = dgrad.output;
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

template <typename T, int n, class Dgrad>
__global__ void __launch_bounds__(kGemmThreads, tile_blocks(n, kHasWgmma)) dgrad(const Dgrad arguments) {
  choose_instruction<n, n>([&](auto wgmma) { write_tile<T, n, wgmma>(arguments); });
}

// Without: pixels of the input along m, channels along n, taps and rows are the terms; any strides.
template <typename T>
__global__ void __launch_bounds__(kSimtThreads, 1)
    simt_dgrad(const T* __restrict__ dy, const T* __restrict__ weight, RowSparseConv2d conv, WeightStrides strides,
               DgradSchedule schedule, Divisor k, T* __restrict__ dx) {
  using Acc = Accumulator<T>;
  const DgradSchedule::Place place = schedule.at(blockIdx.x);
  const Pixels &in = conv.input, &out = conv.dy;
  const int64_t m0 = place.pixel_block * kSimtTile, n0 = place.column_block * kSimtTile;
  const int64_t pixel = m0 + threadIdx.x % kSimtTile, channel = n0 + threadIdx.x % kSimtTile;
  const bool is_pixel = pixel < in.count(), is_channel = channel < conv.channels;
  const PixelPlace at = PixelWalk(in.height, in.width, pixel, 0).at;
  const int64_t terms = conv.k * conv.h.taps * conv.w.taps;

  int64_t term = threadIdx.x / kSimtTile;
  Acc acc[4][4] = {};
  simt_sum(acc, ceil_div(terms, kSimtDepth), [&](Acc(&a)[kSimtLoads], Acc(&b)[kSimtLoads]) {
#pragma unroll
    for (int u = 0; u < kSimtLoads; ++u, term += kSimtStep) {
      a[u] = b[u] = 0;
      if (term >= terms) continue;
      const uint32_t tap = k.quotient(static_cast<uint32_t>(term));
      const int64_t unit = place.group * conv.k + (term - int64_t{tap} * k.value);
      const int i = static_cast<int>(tap) / conv.w.taps, j = static_cast<int>(tap) % conv.w.taps;
      const int y = static_cast<int>(at.y) + conv.h.padding - i * conv.h.dilation;
      const int x = static_cast<int>(at.x) + conv.w.padding - j * conv.w.dilation;
      const bool meets = is_pixel && y >= 0 && x >= 0 && y % conv.h.stride == 0 && x % conv.w.stride == 0 &&
                         y / conv.h.stride < out.height && x / conv.w.stride < out.width;
      if (meets) {
        const int64_t line = y / conv.h.stride * out.h_stride + x / conv.w.stride * out.w_stride;
        const int64_t row = conv.rows ? conv.rows[unit] : unit;
        a[u] = static_cast<Acc>(dy[at.image * out.image_stride + line + row * out.channel_stride]);
      }
      if (is_channel) {
        b[u] = static_cast<Acc>(
            weight[conv.units[unit] * strides.row + channel * strides.channel + i * strides.h + j * strides.w]);
      }
    }
  });
  for (int i = 0; i < 4; ++i) {
    const int64_t m = m0 + threadIdx.x / 16 * 4 + i;
    if (m >= in.count()) continue;
    T* const to = dx + in.offset(m);
    for (int j = 0; j < 4; ++j) {
      const int64_t c = n0 + threadIdx.x % 16 * 4 + j;
      if (c >= conv.channels) continue;
      to[(place.group * conv.channels + c) * in.channel_stride] = static_cast<T>(acc[i][j]);
    }
  }
}

// ---- launchers -----------------------------------------------------------------------------------------------------

// The arguments get their output and their schedule here: phases of so many pixels each.
template <typename T, class Dgrad>
void launch_dgrad(const Context& context, const RowSparseConv2d& conv, Dgrad arguments, const Pixels& to,
                  int64_t pixels, Tensor& dx) {
  const int64_t phases = int64_t{conv.h.stride} * conv.w.stride;
  arguments.output = {data_of<T>(dx),
                      to.image_stride,
                      to.channel_stride,
                      to.h_stride,
                      to.w_stride,
                      conv.channels,
                      lies_in_eights(data_of<T>(dx), to, conv.channels)};
  const auto launch_tiles = [&]<int n>(std::integral_constant<int, n>) {
    arguments.schedule = {ceil_div(pixels, kTileM), ceil_div(conv.channels, n), conv.groups, phases};
    launch(context, dgrad<T, n, Dgrad>, grid_of(arguments.schedule.blocks()), kGemmThreads, tile_shared_bytes(n),
           arguments);
  };
  const int n = dgrad_tile(pixels, conv.channels, arguments.terms(), phases * conv.groups, gpu_of(context));
  for_tile_width<64, 128, kWidestTile>(n, launch_tiles);
}

template <typename T>
void tensor_core_dgrad(const Context& context, const RowSparseConv2d& conv, const Tensor& dy, const Tensor& weight,
                       const WeightStrides& strides, Tensor& dx) {
  const AlignedPixels rows = aligned_pixels(context, dy, conv.dy, {conv.rows, conv.groups, conv.k}, false, false);
  const Pixels line = one_by_one(rows.pixels), to = one_by_one(conv.input);
  const Pixels weight_rows{weight.size(0), 1, 1, strides.row, strides.channel, 0, 0};
  if (conv.is_linear() && line.is_matrix() && to.is_matrix() &&
      lies_in_eights(const_data_of<T>(weight), weight_rows, conv.channels)) {
    const LinearDgrad<T> arguments{{rows.as<T>(), line.image_stride, line.batch},
                                   {const_data_of<T>(weight), conv.units, strides.row, conv.channels},
                                   static_cast<int>(conv.k),
                                   {},
                                   {}};
    return launch_dgrad<T>(context, conv, arguments, to, line.batch, dx);
  }
  const Tensor by_tap = aligned_weight(context, weight, strides, conv);
  const int64_t width = in_eights(conv.channels);
  const Conv2dDgrad<T> arguments{
      {rows.as<T>(), images_of(rows.pixels), phases_of(conv), Divisor(in_eights(conv.k)), static_cast<int>(conv.k)},
      {const_data_of<T>(by_tap), width, width},
      rows.width,
      conv.taps() * in_eights(conv.k) * width,
      {},
      {}};
  const PhaseSize phase = phase_size(conv);
  launch_dgrad<T>(context, conv, arguments, conv.input, conv.input.batch * phase.height * phase.width, dx);
}

void run(const Context& context, const RowSparseConv2d& conv, const Tensor& dy, const Tensor& weight,
         const WeightStrides& strides, Tensor& dx) {
  check_counts(conv.taps(), conv.channels, conv.k);
  const bool cores = takes_tensor_cores(dy.scalar_type(), conv);
  for_dtype<__half, __nv_bfloat16>(dy.scalar_type(), [&]<typename T>(std::type_identity<T>) {
    if constexpr (sizeof(T) == 2) {
      if (cores) return tensor_core_dgrad<T>(context, conv, dy, weight, strides, dx);
    }
    const DgradSchedule schedule{ceil_div(conv.input.count(), kSimtTile), ceil_div(conv.channels, kSimtTile),
                                 conv.groups, 1};
    launch(context, simt_dgrad<T>, grid_of(schedule.blocks()), kSimtThreads, 0, const_data_of<T>(dy),
           const_data_of<T>(weight), conv, strides, schedule, Divisor(conv.k), data_of<T>(dx));
  });
}

// ---- ops -----------------------------------------------------------------------------------------------------------

Tensor rowsparse_dgrad(Tensor dy, Tensor weight, Tensor rows) {
  check_dgrad(dy, weight, rows);
  const Context context(dy);
  const int64_t k = rows.numel(), features = weight.size(1);
  std::vector<int64_t> sizes = sizes_of(dy);
  sizes.back() = features;
  Tensor dx = new_tensor(dy, sizes);
  if (dx.numel() == 0 || k == 0) return torch::stable::zero_(dx);
  make_contiguous(rows);
  const int64_t* const units = indices_of(rows);
  const int64_t* const chosen = dy.size(-1) == k ? nullptr : units;
  const Pixels dy_pixels = matrix_pixels(dy), dx_pixels{dy_pixels.batch, 1, 1, features, 1, 0, 0};
  run(context, {dy_pixels, dx_pixels, chosen, units, kOneTap, kOneTap, 1, k, features}, dy, weight,
      {weight.stride(0), weight.stride(1), 0, 0}, dx);
  return dx;
}

Tensor rowsparse_dgrad_conv2d(Tensor dy, Tensor weight, Tensor rows, Pair input_size, Pair stride, Pair padding,
                              Pair dilation, int64_t groups) {
  check_operands(dy, weight, "weight");
  check_rank(weight, "weight", 4);
  const Geometry geometry{{weight.size(2), weight.size(3)}, stride, padding, dilation, groups};
  check_dgrad_conv2d(dy, weight, rows, input_size, geometry);
  const Context context(dy);
  const int64_t k = rows.numel(), channels = weight.size(1);
  Tensor dx = new_images(dy, {dy.size(0), channels * groups, input_size[0], input_size[1]}, wants_channels_last(dy));
  if (dx.numel() == 0 || dy.numel() == 0 || k == 0 || weight.numel() == 0) return torch::stable::zero_(dx);
  make_contiguous(rows);
  const int64_t* const units = indices_of(rows);
  const int64_t* const chosen = dy.size(1) == k ? nullptr : units;
  const Side h = side_of(geometry, 0), w = side_of(geometry, 1);
  run(context, {image_pixels(dy), image_pixels(dx), chosen, units, h, w, groups, k / groups, channels}, dy, weight,
      {weight.stride(0), weight.stride(1), weight.stride(2), weight.stride(3)}, dx);
  return dx;
}

}  // namespace
}  // namespace wuskern

STABLE_TORCH_LIBRARY_IMPL(wuskern_native, CUDA, m) {
  m.impl("rowsparse_dgrad", TORCH_BOX(&wuskern::rowsparse_dgrad));
  m.impl("rowsparse_dgrad_conv2d", TORCH_BOX(&wuskern::rowsparse_dgrad_conv2d));
}
