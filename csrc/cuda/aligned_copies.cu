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

// The same of planes, whose neighbours are pixels: a block turns kTurned pixels of as many channels around in shared
// memory, so that both are moved in vectors.
constexpr int kTurned = 64, kTurnedStride = kTurned + 2, kTurnedVec = 4;

__global__ void __launch_bounds__(kCopyThreads)
    copy_planes(const uint16_t* __restrict__ src, int64_t plane, int64_t image_stride, int64_t channel_stride,
                const int64_t* __restrict__ rows, int64_t each, int64_t padded, int64_t stride,
                uint16_t* __restrict__ out) {
  __shared__ uint16_t turned[kTurned][kTurnedStride];
  constexpr int vectors = kTurned / kTurnedVec, channels_at_once = kCopyThreads / vectors;
  const int64_t tiles = ceil_div(plane, kTurned), image = blockIdx.x / tiles;
  const int64_t first_pixel = blockIdx.x % tiles * kTurned, first_place = int64_t{blockIdx.y} * kTurned;
  const int vector = threadIdx.x % vectors;
  const int64_t from_pixel = first_pixel + vector * kTurnedVec;
  const uint16_t* const from = src + image * image_stride + from_pixel;
#pragma unroll
  for (int channel = threadIdx.x / vectors; channel < kTurned; channel += channels_at_once) {
    const int64_t place = first_place + channel, group = place / padded, c = place % padded, unit = group * each + c;
    uint2 four{};
    if (place < stride && c < each && from_pixel < plane) {
      four = __ldg(reinterpret_cast<const uint2*>(from + (rows ? rows[unit] : unit) * channel_stride));
    }
    auto* const to = reinterpret_cast<uint32_t*>(&turned[channel][vector * kTurnedVec]);
    to[0] = four.x;
    to[1] = four.y;
  }
  __syncthreads();
  const int64_t place = first_place + threadIdx.x % (kTurned / 8) * 8;
  if (place >= stride) return;
#pragma unroll
  for (int pixel = threadIdx.x / (kTurned / 8); pixel < kTurned; pixel += kCopyThreads / (kTurned / 8)) {
    if (first_pixel + pixel >= plane) return;
    Eight eight;
#pragma unroll
    for (int i = 0; i < 8; ++i) eight.at[i] = turned[place - first_place + i][pixel];
    store_vector<8>(out + (image * plane + first_pixel + pixel) * stride + place, eight);
  }
}

// Whether copy_planes can read them: the pixels of a channel side by side, in vectors.
bool are_planes_of_vectors(const void* data, const Pixels& p) {
  const int64_t plane = p.height * p.width;
  return p.channel_stride != 1 && (p.width == 1 || p.w_stride == 1) && (p.height == 1 || p.h_stride == p.width) &&
         plane > 1 && (plane | p.image_stride | p.channel_stride) % kTurnedVec == 0 &&
         reinterpret_cast<uintptr_t>(data) % (2 * kTurnedVec) == 0;
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
  const int64_t plane = pixels.height * pixels.width, places = ceil_div(stride, kTurned);
  if (are_planes_of_vectors(data, pixels) && places <= kMaxChunks) {
    const dim3 blocks(grid_of(pixels.batch * ceil_div(plane, kTurned)), static_cast<unsigned>(places));
    launch(context, copy_planes, blocks, kCopyThreads, 0, data, plane, pixels.image_stride, pixels.channel_stride, rows,
           each, width, stride, data_of<uint16_t>(copy));
  } else {
    const int64_t threads = stride / 8 * ceil_div(pixels.count(), kPixelsOfThread);
    launch(context, copy_channels, blocks_of(threads), kCopyThreads, 0, data, one_by_one(pixels), rows, groups, each,
           width, data_of<uint16_t>(copy));
  }
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
