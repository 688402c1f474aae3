// See packed.h.
#include "pack.h"
#include "packed.h"

namespace wuskern {
namespace {

using Eight = Pack<uint16_t, 8>;

constexpr int kPixelsOfThread = 4;

// out[pixel, group, padded] = src[pixel, rows[group, c]] for the `each` channels c of a group, then zeros. Null rows:
// all.
__global__ void __launch_bounds__(kPackThreads)
    pack_pixels_kernel(const uint16_t* __restrict__ src, Pixels pixels, const int64_t* __restrict__ rows,
                       int64_t groups, int64_t each, int64_t padded, uint16_t* __restrict__ out) {
  const int64_t thread = int64_t{blockIdx.x} * kPackThreads + threadIdx.x, chunks = groups * padded / 8;
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
    store_pack<8>(out + (pixel * chunks + chunk) * 8, eight);
  }
}

// out[group, tap, row, channel] = src[rows[group, row], channel, tap] in the order of tap_order; zeros where there is
// no such row or channel. `k` rows and `channels` of a group, and what they are filled up to.
__global__ void __launch_bounds__(kPackThreads)
    pack_weight_kernel(const uint16_t* __restrict__ src, Taps taps, const int64_t* __restrict__ rows, int64_t groups,
                       int64_t k, int64_t padded_k, int64_t channels, int64_t padded_channels,
                       uint16_t* __restrict__ out) {
  const int64_t thread = int64_t{blockIdx.x} * kPackThreads + threadIdx.x, chunks = padded_channels / 8;
  const int64_t number = int64_t{taps.h.taps} * taps.w.taps;
  if (thread >= groups * number * padded_k * chunks) return;
  const int64_t chunk = thread % chunks, line = thread / chunks;
  const int64_t row = line % padded_k, tap = line / padded_k % number, group = line / padded_k / number;
  const int i = static_cast<int>(tap) / taps.w.taps, j = static_cast<int>(tap) % taps.w.taps;
  Eight eight;
#pragma unroll
  for (int e = 0; e < 8; ++e) {
    const int64_t c = chunk * 8 + e;
    eight.at[e] = row < k && c < channels ? __ldg(src + rows[group * k + row] * taps.row_stride +
                                                  c * taps.channel_stride + i * taps.h_stride + j * taps.w_stride)
                                          : uint16_t{0};
  }
  const int64_t to = (group * number + tap_order(taps.h, taps.w, i, j)) * padded_k + row;
  store_pack<8>(out + (to * chunks + chunk) * 8, eight);
}

unsigned blocks_of(int64_t threads) { return grid_of(ceil_div(threads, kPackThreads)); }

}  // namespace

Tensor pack_pixels(const Tensor& like, const uint16_t* src, const Pixels& pixels, const int64_t* rows, int64_t groups,
                   int64_t each, cudaStream_t stream) {
  const int64_t width = padded(each), count = pixels.count();
  Tensor out = new_vector(like, count * groups * width);
  const int64_t threads = groups * width / 8 * ceil_div(count, kPixelsOfThread);
  launch(pack_pixels_kernel, blocks_of(threads), kPackThreads, 0, stream, src, pixels, rows, groups, each, width,
         static_cast<uint16_t*>(out.mutable_data_ptr()));
  return out;
}

Tensor pack_weight(const Tensor& like, const uint16_t* src, const Taps& taps, const int64_t* rows, int64_t groups,
                   int64_t k, int64_t channels, cudaStream_t stream) {
  const int64_t lines = groups * taps.h.taps * taps.w.taps * padded(k), width = padded(channels);
  Tensor out = new_vector(like, lines * width);
  launch(pack_weight_kernel, blocks_of(lines * width / 8), kPackThreads, 0, stream, src, taps, rows, groups, k,
         padded(k), channels, width, static_cast<uint16_t*>(out.mutable_data_ptr()));
  return out;
}

}  // namespace wuskern
