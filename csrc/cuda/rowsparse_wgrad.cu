// rowsparse_wgrad and rowsparse_wgrad_conv2d on NVIDIA GPUs: dW[k, features] = dY[tokens, rows]^T X[tokens, features].
//
// The features are the m of a tile and the chosen rows, few, its n. Few tiles and a long sum: the tokens are split over
// blocks, which leave their sums in fp32, and those are added in their order. The 16-bit formats take tensor cores; x
// and dy are read where they lie if 8 neighbours are 16 bytes, else from packed copies (NCHW too). float32 takes
// ordinary arithmetic and is exact, whatever TF32 is allowed; float64 too.
#include "problem.h"
#include "wgrad_tile.h"

namespace wuskern {
namespace {

// ---- launchers ----------------------------------------------------------------------------------------------------

struct Context {
  const Tensor &dy, &x;
  Tensor& dw;
  Gpu gpu;
  cudaStream_t stream;
};

// Runs body(output) with room for the partial sums where there are several, and adds those.
template <typename T, typename Acc, class Body>
void with_parts(const Context& context, const RowProduct& p, const WgradSchedule& schedule, int64_t width,
                Body&& body) {
  const int64_t taps = int64_t{p.h.taps} * p.w.taps, rows = p.groups * p.k, features = taps * width;
  const ScalarType accumulator = std::is_same_v<Acc, double> ? ScalarType::Double : ScalarType::Float;
  Tensor parts = new_vector(context.dw, schedule.splits > 1 ? schedule.splits * rows * features : 0, accumulator);
  const WgradOutput<T, Acc> output{static_cast<T*>(context.dw.mutable_data_ptr()),
                                   schedule.splits > 1 ? static_cast<Acc*>(parts.mutable_data_ptr()) : nullptr, rows,
                                   features, FeatureOrder{Divisor(width), p.channels, taps}};
  body(output);
  if (schedule.splits == 1) return;
  launch(add_parts<T, Acc>, grid_of(ceil_div(rows * features, kPackThreads)), kPackThreads, 0, context.stream, output,
         schedule.splits);
}

template <typename T, int n, class X>
void launch_wgrad(const Context& context, const RowProduct& p, const X& x, int64_t x_width, const Packed& dy) {
  const int64_t features = x_width * p.h.taps * p.w.taps, tokens = p.dy.count();
  const WgradSchedule schedule =
      wgrad_schedule(p.groups, features, p.k, tokens, kTileM, n, kTileDepth, context.gpu.blocks(n));
  const MatrixRows<T> rows{reinterpret_cast<const T*>(dy.data), one_by_one(dy.pixels).image_stride, dy.width};
  with_parts<T, float>(context, p, schedule, x_width, [&](const WgradOutput<T, float>& output) {
    const WgradProblem<T, X> problem{x, rows, p.k, tokens, x_width, dy.width, schedule, output};
    launch(wgrad<T, n, X>, grid_of(schedule.blocks()), kGemmThreads, tile_shared_bytes(n), context.stream, problem);
  });
}

template <typename T, class X>
void launch_tile(const Context& context, const RowProduct& p, const X& x, int64_t x_width, const Packed& dy) {
  switch (wgrad_tile(p.k, context.gpu)) {
    case 32:
      return launch_wgrad<T, 32>(context, p, x, x_width, dy);
    case 64:
      return launch_wgrad<T, 64>(context, p, x, x_width, dy);
    case 128:
      return launch_wgrad<T, 128>(context, p, x, x_width, dy);
    default:
      return launch_wgrad<T, kWidestTile>(context, p, x, x_width, dy);
  }
}

template <typename T>
void tensor_core_wgrad(const Context& context, const RowProduct& p) {
  const Packed dy = packed_pixels(context.dy, p.dy, p.rows, p.groups, p.k, true, context.stream);
  const Packed x = packed_pixels(context.x, p.input, nullptr, p.groups, p.channels, false, context.stream);
  const T* const data = reinterpret_cast<const T*>(x.data);
  const Pixels line = one_by_one(x.pixels);
  if (is_plain(p) && is_matrix(line)) {
    return launch_tile<T>(context, p, MatrixRows<T>{data, line.image_stride, x.width}, x.width, dy);
  }
  const Images images{x.pixels.image_stride, x.pixels.h_stride, x.pixels.w_stride, static_cast<int>(x.pixels.height),
                      static_cast<int>(x.pixels.width)};
  const PixelRows<T> source{data,
                            images,
                            x.width * p.h.taps * p.w.taps,
                            Divisor(x.width),
                            Divisor(p.w.taps),
                            Divisor(p.dy.height * p.dy.width),
                            Divisor(p.dy.width),
                            p.h.stride,
                            p.w.stride,
                            p.h.padding,
                            p.w.padding,
                            p.h.dilation,
                            p.w.dilation};
  launch_tile<T>(context, p, source, x.width, dy);
}

void run(const Context& context, const RowProduct& p) {
  check_counts(p);
  const ScalarType dtype = context.dy.scalar_type();
  const bool cores = takes_tensor_cores(dtype, p);
  for_dtype<__half, __nv_bfloat16>(dtype, [&]<typename T>(std::type_identity<T>) {
    if constexpr (sizeof(T) == 2) {
      if (cores) return tensor_core_wgrad<T>(context, p);
    }
    using Acc = Accumulator<T>;
    const WgradSchedule schedule = wgrad_schedule(p.groups, p.features(), p.k, p.dy.count(), kSimtTile, kSimtTile,
                                                  kSimtDepth, 4 * context.gpu.processors);
    with_parts<T, Acc>(context, p, schedule, p.channels, [&](const WgradOutput<T, Acc>& output) {
      launch(simt_wgrad<T>, grid_of(schedule.blocks()), kSimtThreads, 0, context.stream,
             static_cast<const T*>(context.dy.const_data_ptr()), static_cast<const T*>(context.x.const_data_ptr()), p,
             schedule, output);
    });
  });
}

// ---- ops -----------------------------------------------------------------------------------------------------------

Tensor rowsparse_wgrad(Tensor dy, Tensor x, Tensor rows) {
  check_wgrad(dy, x, rows);
  const torch::stable::accelerator::DeviceGuard guard(dy.get_device_index());
  const int64_t k = rows.numel(), features = x.size(-1);
  Tensor dw = torch::stable::new_empty(x, {k, features});
  if (k == 0 || x.numel() == 0) return torch::stable::zero_(dw);
  if (!rows.is_contiguous()) rows = torch::stable::contiguous(rows);
  const Pixels dy_pixels = matrix_pixels(dy), x_pixels = matrix_pixels(x);
  const int64_t* const chosen = dy.size(-1) == k ? nullptr : rows.const_data_ptr<int64_t>();
  const Geometry linear;
  const RowProduct problem{dy_pixels, x_pixels, chosen, nullptr, linear.side(0, 1), linear.side(1, 1), 1, k, features};
  const int32_t device = dy.get_device_index();
  run({dy, x, dw, gpu_of(device), current_stream(device)}, problem);
  return dw;
}

Tensor rowsparse_wgrad_conv2d(Tensor dy, Tensor x, Tensor rows, Pair kernel_size, Pair stride, Pair padding,
                              Pair dilation, int64_t groups) {
  check_wgrad_conv2d(dy, x, rows, kernel_size, stride, padding, dilation, groups);
  const torch::stable::accelerator::DeviceGuard guard(dy.get_device_index());
  const int64_t k = rows.numel(), channels = x.size(1) / groups;
  Tensor dw = torch::stable::new_empty(x, {k, channels, kernel_size[0], kernel_size[1]});
  if (dw.numel() == 0 || dy.numel() == 0 || x.numel() == 0) return torch::stable::zero_(dw);
  if (!rows.is_contiguous()) rows = torch::stable::contiguous(rows);
  const int64_t* const chosen = dy.size(1) == k ? nullptr : rows.const_data_ptr<int64_t>();
  const Geometry geometry{stride, padding, dilation, groups};
  const RowProduct problem{image_pixels(dy),
                           image_pixels(x),
                           chosen,
                           nullptr,
                           geometry.side(0, kernel_size[0]),
                           geometry.side(1, kernel_size[1]),
                           groups,
                           k / groups,
                           channels};
  const int32_t device = dy.get_device_index();
  run({dy, x, dw, gpu_of(device), current_stream(device)}, problem);
  return dw;
}

}  // namespace
}  // namespace wuskern

STABLE_TORCH_LIBRARY_IMPL(wuskern_native, CUDA, m) {
  m.impl("rowsparse_wgrad", TORCH_BOX(&wuskern::rowsparse_wgrad));
  m.impl("rowsparse_wgrad_conv2d", TORCH_BOX(&wuskern::rowsparse_wgrad_conv2d));
}
