// rowsparse_dgrad and rowsparse_dgrad_conv2d on NVIDIA GPUs: dX[tokens, features] = dY[tokens, rows] W[rows, features].
//
// The sum is short, k terms for each tap, and dX is large: writing it bounds the time. A block writes its tile through
// shared memory, 16 bytes at a time where dX lets it. The 16-bit formats take tensor cores: dy comes packed, rows of a
// Linear's weight are gathered where they lie, a convolution's are packed by tap. Pixels of a convolution with strides
// come in phases that meet the same taps. float32 takes ordinary arithmetic and is exact; float64 too.
#include "dgrad_tile.h"
#include "problem.h"

namespace wuskern {
namespace {

// ---- launchers ----------------------------------------------------------------------------------------------------

struct Context {
  const Tensor &dy, &weight;
  Tensor& dx;
  Taps taps;  // of the weight
  Gpu gpu;
  cudaStream_t stream;
};

template <typename T, int n, class Problem>
void launch_dgrad(const Context& context, Problem problem, int64_t pixels, int64_t phases, int64_t groups) {
  problem.schedule = {ceil_div(pixels, kTileM), ceil_div(problem.output.channels, n), groups, phases};
  launch(dgrad<T, n, Problem>, grid_of(problem.schedule.blocks()), kGemmThreads, tile_shared_bytes(n), context.stream,
         problem);
}

template <typename T, class Problem>
void launch_tile(const Context& context, const Problem& problem, int64_t pixels, int64_t phases, int64_t groups) {
  switch (dgrad_tile(pixels, problem.output.channels, problem.terms(), phases * groups, context.gpu)) {
    case 64:
      return launch_dgrad<T, 64>(context, problem, pixels, phases, groups);
    case 128:
      return launch_dgrad<T, 128>(context, problem, pixels, phases, groups);
    default:
      return launch_dgrad<T, kWidestTile>(context, problem, pixels, phases, groups);
  }
}

template <typename T>
void tensor_core_dgrad(const Context& context, const RowProduct& p) {
  const Packed dy = packed_pixels(context.dy, p.dy, p.rows, p.groups, p.k, false, context.stream);
  const T* const data = reinterpret_cast<const T*>(dy.data);
  T* const dx = static_cast<T*>(context.dx.mutable_data_ptr());
  const auto output_to = [&](const Pixels& to) {
    return DgradOutput<T>{dx,
                          to.image_stride,
                          to.channel_stride,
                          to.h_stride,
                          to.w_stride,
                          p.channels,
                          loads_in_eights(dx, to, p.channels)};
  };
  const Pixels line = one_by_one(dy.pixels), to = one_by_one(p.input);
  const auto* const weight = static_cast<const uint16_t*>(context.weight.const_data_ptr());
  const Pixels weight_rows{context.weight.size(0), 1, 1, context.taps.row_stride, context.taps.channel_stride, 0, 0};
  if (is_plain(p) && is_matrix(line) && is_matrix(to) && loads_in_eights(weight, weight_rows, p.channels)) {
    const LinearProblem<T> problem{{data, line.image_stride, line.batch},
                                   {reinterpret_cast<const T*>(weight), p.units, weight_rows.image_stride, p.channels},
                                   static_cast<int>(p.k),
                                   static_cast<int>(dy.width),
                                   {},
                                   output_to(to)};
    return launch_tile<T>(context, problem, line.batch, 1, 1);
  }
  const Tensor packed =
      pack_weight(context.weight, weight, context.taps, p.units, p.groups, p.k, p.channels, context.stream);
  const int64_t width = padded(p.channels);
  const Images images{dy.pixels.image_stride, dy.pixels.h_stride, dy.pixels.w_stride, static_cast<int>(p.dy.height),
                      static_cast<int>(p.dy.width)};
  const int64_t lines = ceil_div(p.input.height, p.h.stride), columns = ceil_div(p.input.width, p.w.stride);
  const Phases phases{p.h,
                      p.w,
                      static_cast<int>(p.input.height),
                      static_cast<int>(p.input.width),
                      p.input.batch,
                      Divisor(lines * columns),
                      Divisor(columns)};
  const ConvProblem<T> problem{{data, images, phases, Divisor(padded(p.k))},
                               {static_cast<const T*>(packed.const_data_ptr()), width, width},
                               dy.width,
                               p.h.taps * p.w.taps * padded(p.k) * width,
                               {},
                               output_to(p.input)};
  launch_tile<T>(context, problem, p.input.batch * lines * columns, int64_t{p.h.stride} * p.w.stride, p.groups);
}

void run(const Context& context, const RowProduct& p) {
  check_counts(p);
  const ScalarType dtype = context.dy.scalar_type();
  const bool cores = takes_tensor_cores(dtype, p);
  for_dtype<__half, __nv_bfloat16>(dtype, [&]<typename T>(std::type_identity<T>) {
    if constexpr (sizeof(T) == 2) {
      if (cores) return tensor_core_dgrad<T>(context, p);
    }
    const DgradSchedule schedule{ceil_div(p.input.count(), kSimtTile), ceil_div(p.channels, kSimtTile), p.groups, 1};
    launch(simt_dgrad<T>, grid_of(schedule.blocks()), kSimtThreads, 0, context.stream,
           static_cast<const T*>(context.dy.const_data_ptr()), static_cast<const T*>(context.weight.const_data_ptr()),
           p, context.taps, schedule, Divisor(p.k), static_cast<T*>(context.dx.mutable_data_ptr()));
  });
}

// ---- ops -----------------------------------------------------------------------------------------------------------

Tensor rowsparse_dgrad(Tensor dy, Tensor weight, Tensor rows) {
  check_dgrad(dy, weight, rows);
  const torch::stable::accelerator::DeviceGuard guard(dy.get_device_index());
  const int64_t k = rows.numel(), features = weight.size(1);
  std::vector<int64_t> shape(dy.sizes().begin(), dy.sizes().end());
  shape.back() = features;
  Tensor dx = torch::stable::new_empty(dy, shape);
  if (dx.numel() == 0 || k == 0) return torch::stable::zero_(dx);
  if (!rows.is_contiguous()) rows = torch::stable::contiguous(rows);
  const int64_t* const units = rows.const_data_ptr<int64_t>();
  const Pixels pixels = matrix_pixels(dy);
  const Geometry linear;
  const Side h = linear.side(0, 1), w = linear.side(1, 1);
  const RowProduct problem{
      pixels, {pixels.batch, 1, 1, features, 1, 0, 0}, dy.size(-1) == k ? nullptr : units, units, h, w, 1, k, features};
  const int32_t device = dy.get_device_index();
  run({dy, weight, dx, {weight.stride(0), weight.stride(1), 0, 0, h, w}, gpu_of(device), current_stream(device)},
      problem);
  return dx;
}

Tensor rowsparse_dgrad_conv2d(Tensor dy, Tensor weight, Tensor rows, Pair input_size, Pair stride, Pair padding,
                              Pair dilation, int64_t groups) {
  check_dgrad_conv2d(dy, weight, rows, input_size, stride, padding, dilation, groups);
  const torch::stable::accelerator::DeviceGuard guard(dy.get_device_index());
  const int64_t k = rows.numel(), channels = weight.size(1);
  Tensor dx = new_images(dy, channels * groups, input_size[0], input_size[1]);
  if (dx.numel() == 0 || dy.numel() == 0 || k == 0 || weight.numel() == 0) return torch::stable::zero_(dx);
  if (!rows.is_contiguous()) rows = torch::stable::contiguous(rows);
  const int64_t* const units = rows.const_data_ptr<int64_t>();
  const Geometry geometry{stride, padding, dilation, groups};
  const Side h = geometry.side(0, weight.size(2)), w = geometry.side(1, weight.size(3));
  const RowProduct problem{image_pixels(dy), image_pixels(dx), dy.size(1) == k ? nullptr : units, units, h, w, groups,
                           k / groups,       channels};
  const int32_t device = dy.get_device_index();
  run({dy,
       weight,
       dx,
       {weight.stride(0), weight.stride(1), weight.stride(2), weight.stride(3), h, w},
       gpu_of(device),
       current_stream(device)},
      problem);
  return dx;
}

}  // namespace
}  // namespace wuskern

STABLE_TORCH_LIBRARY_IMPL(wuskern_native, CUDA, m) {
  m.impl("rowsparse_dgrad", TORCH_BOX(&wuskern::rowsparse_dgrad));
  m.impl("rowsparse_dgrad_conv2d", TORCH_BOX(&wuskern::rowsparse_dgrad_conv2d));
}
