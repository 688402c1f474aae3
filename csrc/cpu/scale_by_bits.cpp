// scale_by_bits on the CPU: dY times one of two factors, by a bit for each element.
#include "bits_blocks.h"

namespace wuskern {
namespace {

Tensor scale_by_bits(Tensor dy, Tensor bits, double on, std::optional<double> off) {
  check_bits(dy, bits);
  make_filled(dy);
  Tensor out = new_like(dy);
  const uint8_t* const set = const_data_of<uint8_t>(bits);
  for_dtype<Half, BFloat16>(dy.scalar_type(), [&]<typename T>(std::type_identity<T>) {
    const auto by = factors<WideOf<T>>(on, off);
    const T* const from = const_data_of<T>(dy);
    T* const to = data_of<T>(out);
    const auto scale = bits_kernels<T>().scale;
    for_blocks(dy.numel(), [&](int64_t first, int64_t count) {
      scale(by, from + first, set + first / kBitsOfByte, count, to + first);
    });
  });
  return out;
}

}  // namespace
}  // namespace wuskern

STABLE_TORCH_LIBRARY_IMPL(wuskern_native, CPU, m) { m.impl("scale_by_bits", TORCH_BOX(&wuskern::scale_by_bits)); }
