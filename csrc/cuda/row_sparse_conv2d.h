// The gradients of a Conv2d or of a Linear by the chosen rows of dy: their sizes, and where their tensors lie.
#pragma once

#include "../common/gemm.h"
#include "../torch/checks.h"

namespace wuskern {

// A tensor [batch, channels, height, width] of any strides, in elements. A matrix has its rows in `batch`.
struct Pixels {
  int64_t batch, height, width;
  int64_t image_stride, channel_stride, h_stride, w_stride;

  bool is_matrix() const { return height * width == 1; }
  WUSKERN_HOST_DEVICE int64_t count() const { return batch * height * width; }
  WUSKERN_HOST_DEVICE int64_t offset(int64_t pixel) const {
    if (height * width == 1) return pixel * image_stride;
    const int64_t line = pixel / width;
    return line / height * image_stride + line % height * h_stride + pixel % width * w_stride;
  }
};

// Where a weight [N, channels, kernel_h, kernel_w] lies.
struct WeightStrides {
  int64_t row, channel, h, w;
};

// A Linear is a convolution of 1 x 1 taps on images of one pixel. Channels and rows are those of a group.
struct RowSparseConv2d {
  Pixels dy, input;      // the input is x, or dX
  const int64_t* rows;   // of dy; null: dy holds the chosen ones
  const int64_t* units;  // of the weight
  Side h, w;
  int64_t groups, k, channels;

  WUSKERN_HOST_DEVICE int64_t features() const { return channels * h.taps * w.taps; }
  int64_t taps() const { return int64_t{h.taps} * w.taps; }
  // Whether it is a product of two matrices, if its pixels are.
  bool is_linear() const {
    const auto plain = [](const Side& s) { return s.taps == 1 && s.stride == 1 && s.padding == 0; };
    return groups == 1 && plain(h) && plain(w);
  }
};

constexpr Side kOneTap{1, 1, 0, 1};

// Along height (0) or width (1).
inline Side side_of(const Geometry& geometry, int d) {
  return {static_cast<int>(geometry.kernel[d]), static_cast<int>(geometry.stride[d]),
          static_cast<int>(geometry.padding[d]), static_cast<int>(geometry.dilation[d])};
}

// [tokens, features] of a tensor [..., features], which becomes a copy where its tokens are not evenly spaced.
inline Pixels matrix_pixels(Tensor& t) {
  const Layout layout = layout_or_copy(
      t, [](const Tensor& u) { return fold_in_order(u.sizes().data(), u.strides().data(), u.dim(), u.dim() - 1); });
  return {layout.outer, 1, 1, layout.outer_stride, layout.channel_stride, 0, 0};
}

inline Pixels image_pixels(const Tensor& t) {
  const auto stride = [&](int64_t d) { return t.size(d) == 1 ? 0 : t.stride(d); };  // never stepped: fits all
  return {t.size(0), t.size(2), t.size(3), stride(0), t.stride(1), stride(2), stride(3)};
}

// The same pixels as images of one, where they are evenly spaced.
inline Pixels one_by_one(const Pixels& p) {
  const int64_t step = p.width > 1 ? p.w_stride : p.height > 1 ? p.h_stride : p.image_stride;
  const bool even = (p.width == 1 || p.height == 1 || p.h_stride == p.width * step) &&
                    (p.height * p.width == 1 || p.batch == 1 || p.image_stride == p.height * p.width * step);
  return even ? Pixels{p.count(), 1, 1, step, p.channel_stride, 0, 0} : p;
}

}  // namespace wuskern
