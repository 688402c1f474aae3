// pack_bits on the CPU: a bit for each element, whether it lies between two bounds, in one read of x.
#include "bits_blocks.h"

namespace wuskern {
namespace {

// Of truth values, which are bytes; a GPU's dropout has its mask in them.
void pack_truth(const Between<float>& in, const uint8_t* x, int64_t n, uint8_t* bits) {
  for (int64_t i = 0; i < n; i += kBitsOfByte) {
    uint8_t byte = 0;
    for (int64_t j = 0; j < std::min(kBitsOfByte, n - i); ++j) byte |= in(x[i + j] != 0) << j;
    bits[i / kBitsOfByte] = byte;
  }
}

Tensor pack_bits(Tensor x, double low, std::optional<double> high, bool nan) {
  const bool truth = checked_truth(x);
  make_filled(x);
  Tensor out = new_bits(x);
  uint8_t* const bits = data_of<uint8_t>(out);
  const int64_t n = x.numel();
  if (truth) {
    const uint8_t* const from = const_data_of<uint8_t>(x);
    const auto in = between<float>(low, high, nan);
    for_blocks(n,
               [&](int64_t first, int64_t count) { pack_truth(in, from + first, count, bits + first / kBitsOfByte); });
    return out;
  }
  for_dtype<Half, BFloat16>(x.scalar_type(), [&]<typename T>(std::type_identity<T>) {
    const auto in = between<WideOf<T>>(low, high, nan);
    const T* const from = const_data_of<T>(x);
    const auto pack = bits_kernels<T>().pack;
    for_blocks(n, [&](int64_t first, int64_t count) { pack(in, from + first, count, bits + first / kBitsOfByte); });
  });
  return out;
}

}  // namespace
}  // namespace wuskern

STABLE_TORCH_LIBRARY_IMPL(wuskern_native, CPU, m) { m.impl("pack_bits", TORCH_BOX(&wuskern::pack_bits)); }
