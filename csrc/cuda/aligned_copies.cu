// See aligned_copies.h.
#include "aligned_copies.h"
#include "vectors.h"

namespace wuskern {
namespace {

using Eight = Vector<uint16_t, 8>;

constexpr int kPixelsOfThread = 4;

// out[pixel, group, padded] = src[pixel, rows[group, c]] for the `each` channels c of a group, then zeros.
__global__ void __launch_bounds__(kCopyThreads)
    copy_channels(const uint16_t* __restrict__ src, Pixels pixels, const int64_t* __restrict__ rows, int64_t groups,
                  int64_t each, int64_t padded, uint16_t* __restrict__ out) {
  const int64_t thread = int64_t{blockIdx.x} * kCopyThreads + threadIdx.x, chunks = groups * padded / 8;
  const int64_t strips = ceil_div(pixels.count(), kPixelsOfThread);
  if (thread >= chunks * strips) return;
  // Neighbouring threads read neighbours in memory.
  const bool channels_first = pixels.channel_stride == 1;
  const int64_t chunk = channels_first ? thread % chunks : thread / strips;
  const int64_t strip = channels_first ? thread / chunks : thread % strips;
  const int64_t group = chunk * 8 / padded, first = chunk * 8 % padded;
  int64_t channel[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int64_t c = group * each + first + i;
    channel[i] = first + i < each ? (rows ? rows[c] : c) * pixels.channel_stride : -1;
  }
#pragma unroll
  for (int u = 0; u < kPixelsOfThread; ++u) {
    const int64_t pixel = strip + u * strips;
    if (pixel >= pixels.count()) return;
    const uint16_t* const from = src + pixels.offset(pixel);
    Eight eight;
#pragma unroll
    for (int i = 0; i < 8; ++i) eight.at[i] = channel[i] < 0 ? uint16_t{0} : __ldg(from + channel[i]);
    store_vector<8>(out + (pixel * chunks + chunk) * 8, eight);
  }
}

// What the rows of a weight are copied to; `k` rows and `channels` of a group, and what they are filled up to.
struct AlignedWeight {
  Side h, w;
  int64_t groups, k, padded_k, channels, padded_channels;
};

// out[group, tap, row, channel] = src[units[group, row], channel, tap] in the order of tap_order; zeros where there is
// no such row or channel.
__global__ void __launch_bounds__(kCopyThreads)
    copy_weight(const uint16_t* __restrict__ src, WeightStrides strides, const int64_t* __restrict__ units,
                AlignedWeight its, uint16_t* __restrict__ out) {
  const int64_t thread = int64_t{blockIdx.x} * kCopyThreads + threadIdx.x, chunks = its.padded_channels / 8;
  const int64_t taps = int64_t{its.h.taps} * its.w.taps;
  if (thread >= its.groups * taps * its.padded_k * chunks) return;
  const int64_t chunk = thread % chunks, line = thread / chunks;
  const int64_t row = line % its.padded_k, tap = line / its.padded_k % taps, group = line / its.padded_k / taps;
  const int i = static_cast<int>(tap) / its.w.taps, j = static_cast<int>(tap) % its.w.taps;
  Eight eight;
#pragma unroll
  for (int e = 0; e < 8; ++e) {
    const int64_t c = chunk * 8 + e;
    eight.at[e] = row < its.k && c < its.channels ? __ldg(src + units[group * its.k + row] * strides.row +
                                                          c * strides.channel + i * strides.h + j * strides.w)
                                                  : uint16_t{0};
  }
  const int64_t to = (group * taps + tap_order(its.h, its.w, i, j)) * its.padded_k + row;
  store_vector<8>(out + (to * chunks + chunk) * 8, eight);
}

unsigned blocks_of(int64_t threads) { return grid_of(ceil_div(threads, kCopyThreads)); }

}  // namespace

AlignedPixels aligned_pixels(const Context& context, const Tensor& tensor, const Pixels& pixels,
                             const GroupedChannels& channels, bool as_matrix, bool whole) {
  const auto* const data = const_data_of<uint16_t>(tensor);
  const auto [rows, groups, each] = channels;
  const bool fits = !as_matrix || one_by_one(pixels).is_matrix();
  const bool in_place = whole || groups > 1 ? lies_in_eights(data, pixels, each) : starts_in_eights(data, pixels);
  if (rows == nullptr && fits && in_place) return {tensor, data, pixels, each};

  const int64_t width = in_eights(each), stride = groups * width;
  Tensor copy = new_tensor(tensor, {pixels.count() * stride});
  const int64_t threads = stride / 8 * ceil_div(pixels.count(), kPixelsOfThread);
  launch(context, copy_channels, blocks_of(threads), kCopyThreads, 0, data, one_by_one(pixels), rows, groups, each,
         width, data_of<uint16_t>(copy));
  const Pixels copied{pixels.batch,          pixels.height, pixels.width, pixels.height * pixels.width * stride, 1,
                      pixels.width * stride, stride};
  return {copy, const_data_of<uint16_t>(copy), copied, width};
}

Tensor aligned_weight(const Context& context, const Tensor& weight, const WeightStrides& strides,
                      const RowSparseConv2d& conv) {
  const int64_t lines = conv.groups * conv.taps() * in_eights(conv.k), width = in_eights(conv.channels);
  Tensor copy = new_tensor(weight, {lines * width});
  const AlignedWeight to{conv.h, conv.w, conv.groups, conv.k, in_eights(conv.k), conv.channels, width};
  launch(context, copy_weight, blocks_of(lines * width / 8), kCopyThreads, 0, const_data_of<uint16_t>(weight), strides,
         conv.units, to, data_of<uint16_t>(copy));
  return copy;
}

}  // namespace wuskern
