// What a product on tensor cores reads: elements of 16 bits whose neighbours lie next to each other, 8 of them at a
// multiple of 16 bytes. It reads tensors that lie so in place, and of others a copy.
//
// Why dy is copied and not gathered by the product: a chosen element of a row of dy costs the sector of 32 bytes that
// it lies in. Of N = 4096 and 5 % at random that is 1 - .95^16 = 56 % of a row, 4.6 KB, where the row of a copy has 416
// bytes. A product reads dy once for each tile of 128 features: K = 4096 reads 147 KB of L2 for a token by gathering,
// and by copying 4.6 KB once, 0.4 KB written and 13 KB. So it is always copied, unless it came gathered and aligned.
// Rows of a weight are gathered by the product: whole sectors, each read about as often as a copy would be.
#pragma once

#include "launch.h"
#include "row_sparse_conv2d.h"

namespace wuskern {

constexpr int kCopyThreads = 256;  // of a block of simple copies and sums

constexpr int64_t in_eights(int64_t size) { return (size + 7) / 8 * 8; }

// Which channels of pixels: in each group the `each` that rows[group, c] names, or with null rows all in their order.
struct GroupedChannels {
  const int64_t* rows;
  int64_t groups, each;
};

// 16-bit elements of pixels, and what keeps them alive. The channels of a group and what fills them up are `width`.
struct AlignedPixels {
  Tensor owner;
  const uint16_t* data;
  Pixels pixels;
  int64_t width;

  template <typename T>
  const T* as() const {
    return reinterpret_cast<const T*>(data);
  }
};

// Whether every 8th channel, from the first one on, starts 16 bytes that can be copied at once, or a part of them.
inline bool starts_in_eights(const void* data, const Pixels& p) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && p.channel_stride == 1 &&
         (p.image_stride | p.h_stride | p.w_stride) % 8 == 0;
}

// Whether the `each` channels of a group are whole runs of 8 such neighbours.
inline bool lies_in_eights(const void* data, const Pixels& p, int64_t each) {
  return each % 8 == 0 && starts_in_eights(data, p);
}

// The chosen channels of a tensor's pixels: where they lie, or copied to [pixel, group, in_eights(each)] with zeros
// behind the channels. `as_matrix`: evenly spaced. `whole`: whether 8 channels are read at a time; else what reads the
// last of a single group leaves out what is none, so that the rows of dy that gather_rows has padded stay where they
// are.
AlignedPixels aligned_pixels(const Context& context, const Tensor& tensor, const Pixels& pixels,
                             const GroupedChannels& channels, bool as_matrix, bool whole);

// The chosen rows of a weight, copied to [group, tap, in_eights(k), in_eights(channels)], the taps in the order of
// tap_order; zeros where there is no such row or channel.
Tensor aligned_weight(const Context& context, const Tensor& weight, const WeightStrides& strides,
                      const RowSparseConv2d& conv);

}  // namespace wuskern
