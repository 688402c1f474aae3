// The inner loops of bias_grad on the CPU. bias_grad_kernels.cpp is compiled once for each instruction set, into a
// namespace of its name.
#pragma once

#include <cstdint>

#include "capability.h"

namespace wuskern {

template <typename T>
struct BiasGradKernels {
  // acc[columns] = sum of src[rows, columns], whose rows are `stride` elements apart
  void (*add_rows)(const T* src, int64_t stride, int64_t rows, int64_t columns, double* acc);
  // sums[runs] = the sum of each of `runs` runs of `size` elements, whose starts are `stride` elements apart
  void (*add_runs)(const T* src, int64_t stride, int64_t runs, int64_t size, double* sums);
};

#define WUSKERN_DECLARE(NAME)             \
  namespace NAME {                        \
  template <typename T>                   \
  BiasGradKernels<T> bias_grad_kernels(); \
  }
WUSKERN_FOR_EACH_CAPABILITY(WUSKERN_DECLARE)
#undef WUSKERN_DECLARE

}  // namespace wuskern
