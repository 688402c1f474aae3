// The inner loops of rowsparse_sgd_ and rowsparse_adam_ on the CPU. row_update_kernels.cpp is compiled once for each
// instruction set, into a namespace of its name.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../common/row_update.h"
#include "capability.h"

namespace wuskern {

template <typename T>
using Arithmetic = std::conditional_t<std::is_same_v<T, double>, double, float>;

// The gradient of `count` neighbours. Those that come next lie `ahead` elements from them in a parameter, and
// `state_ahead` in its state.
template <typename T>
struct GradientRun {
  const T* values;
  int64_t count, ahead, state_ahead;
};

// Each updates the neighbours of a run, and prefetches the next: a row ends too soon for the processor's own
// prefetches. A null buffer is no momentum, a null most no amsgrad.
template <typename T>
struct RowUpdateKernels {
  void (*sgd)(const SgdNumbers<Arithmetic<T>>& numbers, T* param, T* buffer, const GradientRun<T>& gradient);
  void (*adam)(const AdamNumbers<Arithmetic<T>>& numbers, T* param, T* first, T* second, T* most,
               const GradientRun<T>& gradient);
};

#define WUSKERN_DECLARE(NAME)               \
  namespace NAME {                          \
  template <typename T>                     \
  RowUpdateKernels<T> row_update_kernels(); \
  }
WUSKERN_FOR_EACH_CAPABILITY(WUSKERN_DECLARE)
#undef WUSKERN_DECLARE

}  // namespace wuskern
