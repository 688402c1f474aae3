// What rowsparse_sgd_ and rowsparse_adam_ share on the CPU: the rows of a parameter and of its state as runs of memory,
// handed to as many threads as pay.
#pragma once

#include <algorithm>

#include "../common/half.h"
#include "../common/reduction.h"
#include "../torch/row_memory.h"
#include "row_update_kernels.h"

namespace wuskern {

constexpr int64_t kRun = 1024;   // elements that are updated at once; the next run's are prefetched meanwhile
constexpr int64_t kTask = 8192;  // fewer are not worth another thread

template <typename T>
RowUpdateKernels<T> row_update_kernels() {
#define WUSKERN_PICK(NAME) \
  if (capability() == Capability::NAME) return NAME::row_update_kernels<T>();
  WUSKERN_FOR_EACH_CAPABILITY(WUSKERN_PICK)
#undef WUSKERN_PICK
  return baseline::row_update_kernels<T>();
}

// to[j] = row[place of element first + j], for a row whose channels are neighbours in the parameter and not in values.
template <typename T>
void transpose_run(const T* row, const RowMemory& memory, int64_t first, int64_t count, T* to) {
  int64_t tap = first / memory.channels, channel = first % memory.channels;
  for (int64_t j = 0; j < count; ++j) {
    to[j] = row[channel * memory.taps + tap];
    if (++channel == memory.channels) {
      channel = 0;
      ++tap;
    }
  }
}

// Calls body(offset in the parameter, offset in its state, GradientRun) for runs that make up the chosen rows.
template <typename T, typename Body>
void for_runs(const RowMemory& memory, const Tensor& rows, const Tensor& values, Body&& body) {
  if (memory.elements == 0) return;
  const int64_t* const row = indices_of(rows);
  const T* const from = const_data_of<T>(values);
  const int64_t per_row = ceil_div(memory.elements, kRun), least = kTask / std::min(memory.elements, kRun);
  torch::stable::parallel_for(0, rows.numel() * per_row, std::max(int64_t{1}, least), [&](int64_t begin, int64_t end) {
    T scratch[kRun];
    for (int64_t run = begin; run < end; ++run) {
      const int64_t i = run / per_row, first = run % per_row * kRun, offset = row[i] * memory.elements + first;
      const int64_t state_offset = memory.compact_state ? i * memory.elements + first : offset;
      const int64_t count = std::min(kRun, memory.elements - first);
      const T* const its = from + i * memory.elements;
      if (memory.taps > 1) transpose_run(its, memory, first, count, scratch);
      const bool same_row = first + kRun < memory.elements || run + 1 == end;
      const int64_t ahead = same_row ? kRun : row[i + 1] * memory.elements - offset;
      const int64_t state_ahead = memory.compact_state ? count : ahead;
      body(offset, state_offset, GradientRun<T>{memory.taps > 1 ? scratch : its + first, count, ahead, state_ahead});
    }
  });
}

}  // namespace wuskern
