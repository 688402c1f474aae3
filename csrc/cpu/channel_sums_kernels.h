// The inner loops of bias_grad and row_stats on the CPU. channel_sums_kernels.cpp is compiled once for each instruction
// set, into a namespace of its name.
#pragma once

#include <cstdint>

#include "../common/score.h"
#include "capability.h"

namespace wuskern {

// Beside every sum a score; `scores` is not looked at under Score::none.
template <typename T>
struct ChannelSumsKernels {
  // sums[columns] = sum of src[rows, columns], whose rows are `stride` elements apart
  void (*add_rows)(const T* src, int64_t stride, int64_t rows, int64_t columns, double* sums, double* scores);
  // sums[runs] = the sum of each of `runs` runs of `size` elements, whose starts are `stride` elements apart
  void (*add_runs)(const T* src, int64_t stride, int64_t runs, int64_t size, double* sums, double* scores);
};

#define WUSKERN_DECLARE(NAME)                              \
  namespace NAME {                                         \
  template <typename T>                                    \
  ChannelSumsKernels<T> channel_sums_kernels(Score score); \
  }
WUSKERN_FOR_EACH_CAPABILITY(WUSKERN_DECLARE)
#undef WUSKERN_DECLARE

}  // namespace wuskern
