// piecewise_ on the CPU: an activation and a bit for each element, in one read of x.
#include "bits_blocks.h"

namespace wuskern {
namespace {

Tensor piecewise(Tensor y, Tensor x, double low, std::optional<double> high, bool nan, std::optional<double> outside) {
  check_piecewise(y, x, nan, outside);
  Tensor out = new_bits(x);
  uint8_t* const bits = data_of<uint8_t>(out);
  for_dtype<Half, BFloat16>(x.scalar_type(), [&]<typename T>(std::type_identity<T>) {
    const auto in = between<WideOf<T>>(low, high, nan);
    const auto out_of = outside_of<WideOf<T>>(outside);
    const T* const from = const_data_of<T>(x);
    T* const to = data_of<T>(y);
    const auto compute = bits_kernels<T>().piecewise;
    for_blocks(x.numel(), [&](int64_t first, int64_t count) {
      compute(in, out_of, from + first, count, to + first, bits + first / kBitsOfByte);
    });
  });
  return out;
}

}  // namespace
}  // namespace wuskern

STABLE_TORCH_LIBRARY_IMPL(wuskern_native, CPU, m) { m.impl("piecewise_", TORCH_BOX(&wuskern::piecewise)); }
