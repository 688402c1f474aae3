// scale_by_bits on NVIDIA GPUs: the twin of csrc/cpu/scale_by_bits.cpp. A thread takes the eight elements of a byte, in
// vectors of 16 bytes where these are aligned.
#include "../torch/bits.h"
#include "launch.h"
#include "vectors.h"

namespace wuskern {
namespace {

template <typename T, bool vectors>
__global__ void __launch_bounds__(kThreads) scale(Factors<Accumulator<T>> factors, const T* __restrict__ dy,
                                                  const uint8_t* __restrict__ bits, int64_t n, T* __restrict__ out) {
  using Acc = Accumulator<T>;
  const int64_t byte = int64_t{blockIdx.x} * kThreads + threadIdx.x, first = byte * kBitsOfByte;
  if (first >= n) return;
  const uint32_t set = bits[byte];
  if (vectors && first + kBitsOfByte <= n) {
    constexpr int vec = kVec<T>;
#pragma unroll
    for (int at = 0; at < kBitsOfByte; at += vec) {
      auto vector = load_constant_vector<vec>(dy + first + at);
#pragma unroll
      for (int v = 0; v < vec; ++v) {
        vector.at[v] = static_cast<T>(factors(static_cast<Acc>(vector.at[v]), (set >> (at + v) & 1) != 0));
      }
      store_vector<vec>(out + first + at, vector);
    }
  } else {
    for (int at = 0; at < kBitsOfByte && first + at < n; ++at) {
      out[first + at] = static_cast<T>(factors(static_cast<Acc>(dy[first + at]), (set >> at & 1) != 0));
    }
  }
}

Tensor scale_by_bits(Tensor dy, Tensor bits, double on, std::optional<double> off) {
  check_bits(dy, bits);
  const Context context(dy);
  make_filled(dy);
  Tensor out = new_like(dy);
  const int64_t n = dy.numel();
  if (n == 0) return out;

  const unsigned blocks = grid_of(ceil_div(bits.numel(), kThreads));
  for_dtype<__half, __nv_bfloat16>(dy.scalar_type(), [&]<typename T>(std::type_identity<T>) {
    const T* const from = const_data_of<T>(dy);
    T* const to = data_of<T>(out);
    launch(context, aligned_to_16({from, to}) ? scale<T, true> : scale<T, false>, blocks, kThreads, 0,
           factors<Accumulator<T>>(on, off), from, const_data_of<uint8_t>(bits), n, to);
  });
  return out;
}

}  // namespace
}  // namespace wuskern

STABLE_TORCH_LIBRARY_IMPL(wuskern_native, CUDA, m) { m.impl("scale_by_bits", TORCH_BOX(&wuskern::scale_by_bits)); }
