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
constexpr int64_t kShort = 256;  // elements of a row up to which several are updated at once
constexpr int64_t kRows = 512;   // of these, fewer are not worth another thread
constexpr int64_t kLine = 32;    // bytes of a row from which it pays to ask for it ahead

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

// Where the values of the i-th chosen row begin.
inline int64_t values_offset(const RowMemory& memory, int64_t i, int64_t row) {
  return (memory.compact_values ? i : row) * memory.elements;
}

// Calls body(elements of the parameter, offset in its state, GradientRun) for runs that make up the chosen rows.
template <typename T, typename Body>
void for_long_runs(const RowMemory& memory, T* param, const Tensor& rows, const Tensor& values, Body&& body) {
  const int64_t* const row = indices_of(rows);
  const T* const from = const_data_of<T>(values);
  const int64_t per_row = ceil_div(memory.elements, kRun), least = kTask / std::min(memory.elements, kRun);
  torch::stable::parallel_for(0, rows.numel() * per_row, std::max(int64_t{1}, least), [&](int64_t begin, int64_t end) {
    T scratch[kRun];
    for (int64_t run = begin; run < end; ++run) {
      const int64_t i = run / per_row, first = run % per_row * kRun, offset = row[i] * memory.elements + first;
      const int64_t state_offset = memory.compact_state ? i * memory.elements + first : offset;
      const int64_t count = std::min(kRun, memory.elements - first);
      const T* const row_gradient = from + values_offset(memory, i, row[i]);
      if (memory.taps > 1) transpose_run(row_gradient, memory, first, count, scratch);
      const bool same_row = first + kRun < memory.elements || run + 1 == end;
      const int64_t ahead = same_row ? kRun : row[i + 1] * memory.elements - offset;
      const int64_t state_ahead = memory.compact_state ? count : ahead;
      const T* const gradient = memory.taps > 1 ? scratch : row_gradient + first;
      body(param + offset, state_offset, GradientRun<T>{gradient, count, ahead, state_ahead});
    }
  });
}

// The same for rows so short that memory would be waited for at each: as many as make a run are copied, which asks for
// all of them at once, updated together, and copied back. Their state is compact. `width`: of a row, if the compiler is
// to know it, else 0.
template <typename T, int64_t width, typename Body>
void for_bundles(const RowMemory& memory, T* param, const Tensor& rows, const Tensor& values, Body&& body) {
  const int64_t* const row = indices_of(rows);
  const T* const from = const_data_of<T>(values);
  const int64_t elements = width > 0 ? width : memory.elements, each = kRun / elements;
  const bool is_line = elements * static_cast<int64_t>(sizeof(T)) >= kLine;
  torch::stable::parallel_for(0, ceil_div(rows.numel(), each), ceil_div(kRows, each), [&](int64_t begin, int64_t end) {
    T own[kRun], gradient[kRun];
    for (int64_t bundle = begin; bundle < end; ++bundle) {
      const int64_t first = bundle * each, last = std::min(first + each, rows.numel());
      const int64_t next = bundle + 1 < end && is_line ? std::min(last + each, rows.numel()) : last;
      for (int64_t i = first; i < last; ++i) {
        const T* const row_gradient = from + values_offset(memory, i, row[i]);
        for (int64_t e = 0; e < elements; ++e) {
          own[(i - first) * elements + e] = param[row[i] * elements + e];
          gradient[(i - first) * elements + e] = row_gradient[e];
        }
      }
      for (int64_t i = last; i < next; ++i) {
        __builtin_prefetch(param + row[i] * elements, 1);
        __builtin_prefetch(from + values_offset(memory, i, row[i]));
      }
      const int64_t count = (last - first) * elements;
      body(own, first * elements, GradientRun<T>{gradient, count, 0, count});
      for (int64_t i = first; i < last; ++i) {
        for (int64_t e = 0; e < elements; ++e) param[row[i] * elements + e] = own[(i - first) * elements + e];
      }
    }
  });
}

template <typename T, typename Body>
void for_runs(const RowMemory& memory, T* param, const Tensor& rows, const Tensor& values, Body&& body) {
  if (memory.elements == 0) return;
  if (memory.compact_state && memory.taps == 1 && memory.elements <= kShort) {
    const auto update = memory.elements == 1    ? for_bundles<T, 1, Body>
                        : memory.elements == 16 ? for_bundles<T, 16, Body>
                                                : for_bundles<T, 0, Body>;
    update(memory, param, rows, values, std::forward<Body>(body));
  } else {
    for_long_runs<T>(memory, param, rows, values, body);
  }
}

}  // namespace wuskern
