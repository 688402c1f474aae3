// Copies that give a product on tensor cores what it reads: elements of 16 bits whose neighbours lie next to each
// other, in rows that start at multiples of 16 bytes.
//
// Why dy is packed and not gathered by the product: a chosen element of a row of dy costs the sector of 32 bytes that
// it lies in. Of N = 4096 and 5 % at random that is 1 - .95^16 = 56 % of a row, 4.6 KB, where the packed row has 416
// bytes. A product reads dy once for each tile of 128 features: K = 4096 reads 147 KB of L2 for a token by gathering,
// and by packing 4.6 KB once, 0.4 KB written and 13 KB. So it is always packed, unless it came gathered and aligned.
// Rows of a weight are gathered by the product: whole sectors, each read about as often as a packed copy would be.
#pragma once

#include "../common/gemm.h"
#include "launch.h"

namespace wuskern {

// A tensor [batch, channels, height, width] of any strides, in elements. A matrix has its rows in `batch`.
struct Pixels {
  int64_t batch, height, width;
  int64_t image_stride, channel_stride, h_stride, w_stride;

  WUSKERN_HOST_DEVICE int64_t count() const { return batch * height * width; }
  WUSKERN_HOST_DEVICE int64_t offset(int64_t pixel) const {
    if (height * width == 1) return pixel * image_stride;
    const int64_t line = pixel / width;
    return line / height * image_stride + line % height * h_stride + pixel % width * w_stride;
  }
};

// A weight [N, channels, kernel_h, kernel_w] of any strides.
struct Taps {
  int64_t row_stride, channel_stride, h_stride, w_stride;
  Side h, w;
};

// A convolution, or a Linear: one of 1 x 1 taps on images of one pixel. Channels and rows are those of a group.
struct RowProduct {
  Pixels dy, input;      // the input is x, or dX
  const int64_t* rows;   // of dy; null: dy holds the chosen ones
  const int64_t* units;  // of the weight
  Side h, w;
  int64_t groups, k, channels;

  WUSKERN_HOST_DEVICE int64_t features() const { return channels * h.taps * w.taps; }
};

constexpr int kPackThreads = 256;  // of a block of simple copies and sums

constexpr int64_t padded(int64_t size) { return (size + 7) / 8 * 8; }

// [pixel, group, padded(each)] = src[pixel, rows[group, c]] for the `each` channels c of a group, then zeros. Null
// rows: all channels in their order. `like`: for the allocation.
Tensor pack_pixels(const Tensor& like, const uint16_t* src, const Pixels& pixels, const int64_t* rows, int64_t groups,
                   int64_t each, cudaStream_t stream);

// [group, tap, padded(k), padded(channels)] = src[rows[group, row], channel, tap], the taps in the order of tap_order;
// zeros where there is no such row or channel. `k` and `channels` are those of a group.
Tensor pack_weight(const Tensor& like, const uint16_t* src, const Taps& taps, const int64_t* rows, int64_t groups,
                   int64_t k, int64_t channels, cudaStream_t stream);

}  // namespace wuskern
