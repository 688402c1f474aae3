// pack_bits on NVIDIA GPUs: the twin of csrc/cpu/pack_bits.cpp. A thread makes a byte: it reads its eight elements in
// vectors of 16 bytes where these are aligned.
#include "../torch/bits.h"
#include "launch.h"
#include "vectors.h"

namespace wuskern {
namespace {

template <typename Acc>
__device__ __forceinline__ Acc wide(uint8_t truth) {
  return truth != 0 ? Acc{1} : Acc{0};
}
template <typename Acc, typename T>
__device__ __forceinline__ Acc wide(T x) {
  return static_cast<Acc>(x);
}

template <typename T, bool vectors>
__global__ void __launch_bounds__(kThreads)
    pack(Between<Accumulator<T>> between, const T* __restrict__ x, int64_t n, uint8_t* __restrict__ bits) {
  const int64_t byte = int64_t{blockIdx.x} * kThreads + threadIdx.x, first = byte * kBitsOfByte;
  if (first >= n) return;
  uint32_t found = 0;
  if (vectors && first + kBitsOfByte <= n) {
    constexpr int vec = kVec<T>;
#pragma unroll
    for (int at = 0; at < kBitsOfByte; at += vec) {
      const auto vector = load_constant_vector<vec>(x + first + at);
#pragma unroll
      for (int v = 0; v < vec; ++v) found |= uint32_t{between(wide<Accumulator<T>>(vector.at[v]))} << (at + v);
    }
  } else {
    for (int at = 0; at < kBitsOfByte && first + at < n; ++at) {
      found |= uint32_t{between(wide<Accumulator<T>>(x[first + at]))} << at;
    }
  }
  bits[byte] = static_cast<uint8_t>(found);
}

template <typename T>
void launch_pack(const Context& context, const Between<Accumulator<T>>& between, const T* x, int64_t n, uint8_t* bits) {
  const unsigned blocks = grid_of(ceil_div(ceil_div(n, kBitsOfByte), kThreads));
  if constexpr (sizeof(T) > 1) {
    if (aligned_to_16({x})) return launch(context, pack<T, true>, blocks, kThreads, 0, between, x, n, bits);
  }
  launch(context, pack<T, false>, blocks, kThreads, 0, between, x, n, bits);
}

Tensor pack_bits(Tensor x, double low, std::optional<double> high, bool nan) {
  const bool truth = checked_truth(x);
  const Context context(x);
  make_filled(x);
  Tensor out = new_bits(x);
  const int64_t n = x.numel();
  if (n == 0) return out;

  uint8_t* const bits = data_of<uint8_t>(out);
  if (truth) {
    launch_pack(context, between<float>(low, high, nan), const_data_of<uint8_t>(x), n, bits);
    return out;
  }
  for_dtype<__half, __nv_bfloat16>(x.scalar_type(), [&]<typename T>(std::type_identity<T>) {
    launch_pack(context, between<Accumulator<T>>(low, high, nan), const_data_of<T>(x), n, bits);
  });
  return out;
}

}  // namespace
}  // namespace wuskern

STABLE_TORCH_LIBRARY_IMPL(wuskern_native, CUDA, m) { m.impl("pack_bits", TORCH_BOX(&wuskern::pack_bits)); }
