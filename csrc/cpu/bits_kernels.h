// The inner loops of pack_bits, piecewise_, scale_by_bits and scale_channels on the CPU. bits_kernels.cpp is compiled
// once for each instruction set, into a namespace of its name.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../common/bits.h"
#include "../common/half.h"
#include "../common/reduction.h"
#include "capability.h"

namespace wuskern {

template <typename T>
using WideOf = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Each takes `n` neighbours; where there are bits, the first element has the lowest of the first byte.
template <typename T>
struct BitsKernels {
  void (*pack)(const Between<WideOf<T>>& between, const T* x, int64_t n, uint8_t* bits);
  void (*piecewise)(const Between<WideOf<T>>& between, const Outside<WideOf<T>>& outside, const T* x, int64_t n, T* y,
                    uint8_t* bits);
  void (*scale)(const Factors<WideOf<T>>& factors, const T* dy, const uint8_t* bits, int64_t n, T* out);
  void (*scale_all)(WideOf<T> factor, const T* dy, int64_t n, T* out);
  void (*scale_each)(const WideOf<T>* factors, const T* dy, int64_t n, T* out);
};

#define WUSKERN_DECLARE(NAME)    \
  namespace NAME {               \
  template <typename T>          \
  BitsKernels<T> bits_kernels(); \
  }
WUSKERN_FOR_EACH_CAPABILITY(WUSKERN_DECLARE)
#undef WUSKERN_DECLARE

template <typename T>
BitsKernels<T> bits_kernels() {
#define WUSKERN_PICK(NAME) \
  if (capability() == Capability::NAME) return NAME::bits_kernels<T>();
  WUSKERN_FOR_EACH_CAPABILITY(WUSKERN_PICK)
#undef WUSKERN_PICK
  return baseline::bits_kernels<T>();
}

}  // namespace wuskern
