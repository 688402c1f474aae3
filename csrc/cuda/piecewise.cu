// piecewise_ on NVIDIA GPUs: the twin of csrc/cpu/piecewise.cpp. A thread takes the eight elements of a byte, in
// vectors of 16 bytes where these are aligned.
#include "../torch/bits.h"
#include "launch.h"
#include "vectors.h"

namespace wuskern {
namespace {

// x and y may be one memory, so neither is read as a constant.
template <typename T, bool vectors>
__global__ void __launch_bounds__(kThreads) piecewise(Between<Accumulator<T>> between, Outside<Accumulator<T>> outside,
                                                      const T* x, int64_t n, T* y, uint8_t* __restrict__ bits) {
  using Acc = Accumulator<T>;
  const int64_t byte = int64_t{blockIdx.x} * kThreads + threadIdx.x, first = byte * kBitsOfByte;
  if (first >= n) return;
  uint32_t found = 0;
  const auto compute = [&](T one, int place) {
    const Acc wide = static_cast<Acc>(one);
    const bool inside = between(wide);
    found |= uint32_t{inside} << place;
    return static_cast<T>(inside ? wide : outside(wide, between));
  };
  if (vectors && first + kBitsOfByte <= n) {
    constexpr int vec = kVec<T>;
#pragma unroll
    for (int at = 0; at < kBitsOfByte; at += vec) {
      auto vector = load_vector<vec>(x + first + at);
#pragma unroll
      for (int v = 0; v < vec; ++v) vector.at[v] = compute(vector.at[v], at + v);
      store_vector<vec>(y + first + at, vector);
    }
  } else {
    for (int at = 0; at < kBitsOfByte && first + at < n; ++at) y[first + at] = compute(x[first + at], at);
  }
  bits[byte] = static_cast<uint8_t>(found);
}

Tensor piecewise_op(Tensor y, Tensor x, double low, std::optional<double> high, bool nan,
                    std::optional<double> outside) {
  check_piecewise(y, x, nan, outside);
  const Context context(x);
  Tensor out = new_bits(x);
  const int64_t n = x.numel();
  if (n == 0) return out;

  const unsigned blocks = grid_of(ceil_div(out.numel(), kThreads));
  for_dtype<__half, __nv_bfloat16>(x.scalar_type(), [&]<typename T>(std::type_identity<T>) {
    using Acc = Accumulator<T>;
    const T* const from = const_data_of<T>(x);
    T* const to = data_of<T>(y);
    launch(context, aligned_to_16({from, to}) ? piecewise<T, true> : piecewise<T, false>, blocks, kThreads, 0,
           between<Acc>(low, high, nan), outside_of<Acc>(outside), from, n, to, data_of<uint8_t>(out));
  });
  return out;
}

}  // namespace
}  // namespace wuskern

STABLE_TORCH_LIBRARY_IMPL(wuskern_native, CUDA, m) { m.impl("piecewise_", TORCH_BOX(&wuskern::piecewise_op)); }
