// rowsparse_wgrad and rowsparse_wgrad_conv2d on NVIDIA GPUs: dW[k, features] = dY[tokens, rows]^T X[tokens, features].
//
// The features are the m of a tile and the chosen rows, few, its n. Few tiles and a long sum: the tokens are split over
// blocks, which leave their sums in fp32, and those are added in their order. The 16-bit formats take tensor cores; x
// and dy are read where they lie if 8 neighbours are 16 bytes, else from packed copies (NCHW too). float32 takes
// ordinary arithmetic and is exact, whatever TF32 is allowed; float64 too.
#include "problem.h"
#include "sources.h"

namespace wuskern {
namespace {

// ---- kernels -------------------------------------------------------------------------------------------------------

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
  const int64_t begin = problem.schedule.first_step(place.split) * kTileDepth;
  const int64_t end = min(problem.schedule.first_step(place.split + 1) * kTileDepth, problem.tokens);
  const int64_t m0 = place.feature_block * kTileM, n0 = place.row_block * n;
  const auto x = problem.x.at(place.group * problem.x_group, m0 + column_of<kTileM>(), end);
  const auto dy = problem.dy.at(place.group * problem.dy_group, n0 + column_of<n>(), end);

  Multiplier<T, n, wgmma> multiplier;
  sum_products<T, n, true>(
      multiplier, begin, end, [&](uint32_t tile, int64_t depth) { load_rows<kTileM>(tile, depth, x); },
      [&](uint32_t tile, int64_t depth) { load_rows<n>(tile, depth, dy); });

  const int64_t row0 = place.group * problem.k;
  multiplier.for_results([&](int m, int column, float v0, float v1) {
    const int64_t feature = m0 + m, row = n0 + column;
    if (feature >= problem.output.features) return;
    if (row < problem.k) problem.output.write(place.split, row0 + row, feature, v0);
    if (row + 1 < problem.k) problem.output.write(place.split, row0 + row + 1, feature, v1);
  });
}

template <typename T, int n, class X>
__global__ void __launch_bounds__(kGemmThreads, n == kWidestTile ? 1 : 2) wgrad(const WgradProblem<T, X> problem) {
  choose_instruction<n>([&](auto wgmma) { wgrad_tile_sum<T, n, wgmma>(problem); });
}

template <typename T>
__global__ void __launch_bounds__(kSimtThreads)
    simt_wgrad(const T* __restrict__ dy, const T* __restrict__ x, const SimtProblem problem,
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

// ---- launchers
// -------------------------------------------------------------------------------------------------------

struct Context {
  const Tensor &dy, &x;
  Tensor& dw;
  Gpu gpu;
  cudaStream_t stream;
};

// Runs body(output) with room for the partial sums where there are several, and adds those.
template <typename T, typename Acc, class Body>
void with_parts(const Context& context, const SimtProblem& p, const WgradSchedule& schedule, int64_t width,
                Body&& body) {
  const int64_t taps = int64_t{p.h.taps} * p.w.taps, rows = p.groups * p.k, features = taps * width;
  const ScalarType accumulator = std::is_same_v<Acc, double> ? ScalarType::Double : ScalarType::Float;
  Tensor parts = new_vector(context.dw, schedule.splits > 1 ? schedule.splits * rows * features : 0, accumulator);
  const WgradOutput<T, Acc> output{static_cast<T*>(context.dw.mutable_data_ptr()),
                                   schedule.splits > 1 ? static_cast<Acc*>(parts.mutable_data_ptr()) : nullptr, rows,
                                   features, FeatureOrder{Divisor(width), p.channels, taps}};
  body(output);
  if (schedule.splits == 1) return;
  launch(add_parts<T, Acc>, static_cast<unsigned>(ceil_div(rows * features, kPackThreads)), kPackThreads, 0,
         context.stream, output, schedule.splits);
}

template <typename T, int n, class X>
void launch_wgrad(const Context& context, const SimtProblem& p, const X& x, int64_t x_width, const Packed& dy) {
  const int64_t features = x_width * p.h.taps * p.w.taps, tokens = p.dy.count();
  const WgradSchedule schedule =
      wgrad_schedule(p.groups, features, p.k, tokens, kTileM, n, kTileDepth, context.gpu.blocks(n));
  const MatrixRows<T> rows{reinterpret_cast<const T*>(dy.data), one_by_one(dy.pixels).image_stride, dy.width};
  with_parts<T, float>(context, p, schedule, x_width, [&](const WgradOutput<T, float>& output) {
    const WgradProblem<T, X> problem{x, rows, p.k, tokens, x_width, dy.width, schedule, output};
    launch(wgrad<T, n, X>, static_cast<unsigned>(schedule.blocks()), kGemmThreads, tile_shared_bytes(n), context.stream,
           problem);
  });
}

template <typename T, class X>
void launch_tile(const Context& context, const SimtProblem& p, const X& x, int64_t x_width, const Packed& dy) {
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
void tensor_core_wgrad(const Context& context, const SimtProblem& p) {
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

void run(const Context& context, const SimtProblem& p) {
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
      launch(simt_wgrad<T>, static_cast<unsigned>(schedule.blocks()), kSimtThreads, 0, context.stream,
             static_cast<const T*>(context.dy.const_data_ptr()), static_cast<const T*>(context.x.const_data_ptr()), p,
             schedule, output);
    });
  });
}

// ---- ops -----------------------------------------------------------------------------------------------------------

Tensor rowsparse_wgrad(Tensor dy, Tensor x, Tensor rows) {
  const torch::stable::accelerator::DeviceGuard guard(dy.get_device_index());
  const int64_t k = rows.numel(), features = x.size(-1);
  Tensor dw = torch::stable::new_empty(x, {k, features});
  if (k == 0 || x.numel() == 0) return torch::stable::zero_(dw);
  if (!rows.is_contiguous()) rows = torch::stable::contiguous(rows);
  const Pixels dy_pixels = matrix_pixels(dy), x_pixels = matrix_pixels(x);
  const int64_t* const chosen = dy.size(-1) == k ? nullptr : rows.const_data_ptr<int64_t>();
  const Geometry linear;
  const SimtProblem problem{dy_pixels, x_pixels, chosen, nullptr, linear.side(0, 1), linear.side(1, 1), 1, k, features};
  const int32_t device = dy.get_device_index();
  run({dy, x, dw, {compute_capability(device), processor_count(device)}, current_stream(device)}, problem);
  return dw;
}

Tensor rowsparse_wgrad_conv2d(Tensor dy, Tensor x, Tensor rows, Pair kernel_size, Pair stride, Pair padding,
                              Pair dilation, int64_t groups) {
  const torch::stable::accelerator::DeviceGuard guard(dy.get_device_index());
  const int64_t k = rows.numel(), channels = x.size(1) / groups;
  Tensor dw = torch::stable::new_empty(x, {k, channels, kernel_size[0], kernel_size[1]});
  if (dw.numel() == 0 || dy.numel() == 0 || x.numel() == 0) return torch::stable::zero_(dw);
  if (!rows.is_contiguous()) rows = torch::stable::contiguous(rows);
  const int64_t* const chosen = dy.size(1) == k ? nullptr : rows.const_data_ptr<int64_t>();
  const Geometry geometry{stride, padding, dilation, groups};
  const SimtProblem problem{image_pixels(dy),
                            image_pixels(x),
                            chosen,
                            nullptr,
                            geometry.side(0, kernel_size[0]),
                            geometry.side(1, kernel_size[1]),
                            groups,
                            k / groups,
                            channels};
  const int32_t device = dy.get_device_index();
  run({dy, x, dw, {compute_capability(device), processor_count(device)}, current_stream(device)}, problem);
  return dw;
}

}  // namespace
}  // namespace wuskern

STABLE_TORCH_LIBRARY_IMPL(wuskern_native, CUDA, m) {
  m.impl("rowsparse_wgrad", TORCH_BOX(&wuskern::rowsparse_wgrad));
  m.impl("rowsparse_wgrad_conv2d", TORCH_BOX(&wuskern::rowsparse_wgrad_conv2d));
}
