// A row-sparse product of a Linear or of a Conv2d, as tensors say it.
#pragma once

#include <algorithm>
#include <vector>

#include "../checks.h"
#include "packed.h"
#include "simt.h"

namespace wuskern {

// Of a convolution, (height, width) each. A Linear is one of a single tap on images of one pixel.
struct Geometry {
  Pair stride{1, 1}, padding{0, 0}, dilation{1, 1};
  int64_t groups = 1;

  Side side(int d, int64_t taps) const {
    return {static_cast<int>(taps), static_cast<int>(stride[d]), static_cast<int>(padding[d]),
            static_cast<int>(dilation[d])};
  }
};

// ---- arguments -----------------------------------------------------------------------------------------------------

inline void check_operands(const Tensor& dy, const Tensor& other, const char* name) {
  check_dtype(dy, "dy");
  check_like(other, name, dy);
}

// Of a Linear: dy [..., N or k].
inline void check_wgrad(const Tensor& dy, const Tensor& x, const Tensor& rows) {
  check_operands(dy, x, "x");
  STD_TORCH_CHECK(dy.dim() >= 1, "dy: expected at least one dimension");
  std::vector<int64_t> sizes(dy.sizes().begin(), dy.sizes().end());
  check_rank(x, "x", dy.dim());
  sizes.back() = x.size(-1);
  check_sizes(x, "x", sizes);
  check_index(rows, dy, dy.size(-1));
}

// dy holds all units of the weight, or the chosen ones.
inline void check_units(const Tensor& dy, int64_t dim, const Tensor& weight, const Tensor& rows) {
  check_index(rows, dy, weight.size(0));
  STD_TORCH_CHECK(dy.size(dim) == weight.size(0) || dy.size(dim) == rows.numel(), "dy: expected ", weight.size(0),
                  " units as weight has, or those of ", rows.numel(), " rows, got ", dy.size(dim));
}

inline void check_dgrad(const Tensor& dy, const Tensor& weight, const Tensor& rows) {
  check_operands(dy, weight, "weight");
  STD_TORCH_CHECK(dy.dim() >= 1, "dy: expected at least one dimension");
  check_rank(weight, "weight", 2);
  check_units(dy, -1, weight, rows);
}

// Rows and channels of dy come in groups.
inline void check_groups(const Tensor& dy, const Tensor& rows, int64_t groups) {
  STD_TORCH_CHECK(groups >= 1 && groups <= kMostTaps && rows.numel() % groups == 0 && dy.size(1) % groups == 0,
                  "groups: expected a divisor of ", rows.numel(), " rows and ", dy.size(1), " channels of dy, got ",
                  groups);
}

inline void check_wgrad_conv2d(const Tensor& dy, const Tensor& x, const Tensor& rows, const Pair& kernel,
                               const Pair& stride, const Pair& padding, const Pair& dilation, int64_t groups) {
  check_operands(dy, x, "x");
  check_rank(x, "x", 4);
  check_pixels(dy, {x.size(2), x.size(3)}, kernel, stride, padding, dilation);
  STD_TORCH_CHECK(x.size(0) == dy.size(0), "x: expected a batch of ", dy.size(0), ", got ", x.size(0));
  check_index(rows, dy, dy.size(1));
  check_groups(dy, rows, groups);
  STD_TORCH_CHECK(x.size(1) % groups == 0, "x: expected a multiple of ", groups, " channels, got ", x.size(1));
}

inline void check_dgrad_conv2d(const Tensor& dy, const Tensor& weight, const Tensor& rows, const Pair& size,
                               const Pair& stride, const Pair& padding, const Pair& dilation, int64_t groups) {
  check_operands(dy, weight, "weight");
  check_rank(weight, "weight", 4);
  check_pixels(dy, size, {weight.size(2), weight.size(3)}, stride, padding, dilation);
  check_units(dy, 1, weight, rows);
  check_groups(dy, rows, groups);
  STD_TORCH_CHECK(weight.size(0) % groups == 0, "weight: expected a multiple of ", groups, " units, got ",
                  weight.size(0));
  const int64_t phases = checked_product({stride[0], stride[1], groups}, "stride");
  STD_TORCH_CHECK(phases <= kMostBlocks, "stride: expected fewer than 2^31 pixels between two, in all groups, got ",
                  phases);
  checked_product({dy.size(0), weight.size(1), groups, size[0], size[1]}, "input_size");
}

// What kernels count with 31 bits: the features of a row of dW, and the terms of a sum of dX.
inline void check_counts(const RowProduct& p) {
  const int64_t taps = int64_t{p.h.taps} * p.w.taps, most = kMostTaps / taps;
  STD_TORCH_CHECK(p.channels <= most && p.k <= most, "kernel_size: expected ", taps,
                  " taps of fewer than 2^31 features");
}

// ---- tensors -------------------------------------------------------------------------------------------------------

// [tokens, features] of a tensor [..., features]; a copy of it where its tokens are not evenly spaced.
inline Pixels matrix_pixels(Tensor& t) {
  std::optional<Layout> layout;
  const auto fold = [&] { return fold_in_order(t.sizes().data(), t.strides().data(), t.dim(), t.dim() - 1); };
  if (!(layout = fold())) {
    t = torch::stable::contiguous(t);
    layout = fold();
  }
  return {layout->outer, 1, 1, layout->outer_stride, layout->channel_stride, 0, 0};
}

inline Pixels image_pixels(const Tensor& t) {
  const auto stride = [&](int64_t d) { return t.size(d) == 1 ? 0 : t.stride(d); };  // never stepped: fits all
  return {t.size(0), t.size(2), t.size(3), stride(0), t.stride(1), stride(2), stride(3)};
}

// A new tensor [B, C, H, W] as dy lies: channels_last where it is that and not contiguous.
inline Tensor new_images(const Tensor& dy, int64_t channels, int64_t height, int64_t width) {
  if (dy.is_contiguous() || !is_channels_last(dy.sizes().data(), dy.strides().data())) {
    return torch::stable::new_empty(dy, {dy.size(0), channels, height, width});
  }
  const Tensor last = torch::stable::new_empty(dy, {dy.size(0), height, width, channels});
  return torch::stable::transpose(torch::stable::transpose(last, 1, 3), 2, 3);
}

// The same pixels as images of one, where they are evenly spaced.
inline Pixels one_by_one(const Pixels& p) {
  const int64_t step = p.width > 1 ? p.w_stride : p.height > 1 ? p.h_stride : p.image_stride;
  const bool even = (p.width == 1 || p.height == 1 || p.h_stride == p.width * step) &&
                    (p.height * p.width == 1 || p.batch == 1 || p.image_stride == p.height * p.width * step);
  return even ? Pixels{p.count(), 1, 1, step, p.channel_stride, 0, 0} : p;
}

inline bool is_matrix(const Pixels& p) { return p.height * p.width == 1; }

// Whether 8 neighbours among the `each` channels of a group are 16 bytes that can be copied at once.
inline bool loads_in_eights(const void* data, const Pixels& p, int64_t each) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && p.channel_stride == 1 && each % 8 == 0 &&
         (p.image_stride | p.h_stride | p.w_stride) % 8 == 0;
}

// Where a product on tensor cores reads 16-bit elements of pixels, and what keeps them alive. `each` channels of a
// group fill `width`.
struct Packed {
  Tensor owner;
  const uint16_t* data;
  Pixels pixels;
  int64_t width;
};

// The pixels themselves where 8 neighbours at a time can be read from them (evenly spaced ones, if `as_matrix`), else a
// packed copy.
inline Packed packed_pixels(const Tensor& t, const Pixels& pixels, const int64_t* rows, int64_t groups, int64_t each,
                            bool as_matrix, cudaStream_t stream) {
  const auto* const data = static_cast<const uint16_t*>(t.const_data_ptr());
  const bool fits = !as_matrix || is_matrix(one_by_one(pixels));
  if (rows == nullptr && fits && loads_in_eights(data, pixels, each)) return {t, data, pixels, each};
  const int64_t width = padded(each), stride = groups * width;
  Tensor copy = pack_pixels(t, data, one_by_one(pixels), rows, groups, each, stream);
  const auto* const its = static_cast<const uint16_t*>(copy.const_data_ptr());
  return {copy,
          its,
          {pixels.batch, pixels.height, pixels.width, pixels.height * pixels.width * stride, 1, pixels.width * stride,
           stride},
          width};
}

// Whether this library has code for Hopper with its own instructions. "9.0" and PTX have not.
#ifdef WUSKERN_CUDA_ARCHITECTURES
inline bool built_for_hopper() { return std::string(WUSKERN_CUDA_ARCHITECTURES).find("9.0a") != std::string::npos; }
#else
inline bool built_for_hopper() { return true; }
#endif

inline Gpu gpu_of(int32_t device) {
  const int capability = compute_capability(device);
  return {capability, processor_count(device), capability == 90 && built_for_hopper()};
}

// 16-bit formats, where 31 bits count tokens (pixels), features and terms; elements may be more.
inline bool takes_tensor_cores(ScalarType dtype, const RowProduct& p) {
  constexpr int64_t most =
      (int64_t{1} << 31) - kTileM - 4 * kTileDepth;  // a tile and its loads may start before the end
  const bool is_half = dtype == ScalarType::Half || dtype == ScalarType::BFloat16;
  const int64_t across = std::max(p.features(), int64_t{p.h.taps} * p.w.taps * padded(p.k));
  return is_half && std::max({across, p.dy.count(), p.input.count()}) < most;
}

// A product of two matrices.
inline bool is_plain(const RowProduct& p) {
  const auto plain = [](const Side& s) { return s.taps == 1 && s.stride == 1 && s.padding == 0; };
  return p.groups == 1 && plain(p.h) && plain(p.w);
}

}  // namespace wuskern
