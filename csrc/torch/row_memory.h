// How the rows of a parameter lie in memory, and those of its state with it: what the row updates of both devices take.
#pragma once

#include "checks.h"
#include "tensors.h"

namespace wuskern {

// A row is one run of `elements`. In channels_last it holds [taps, channels], where values hold [channels, taps]; taps
// is 1 where the two are the same.
struct RowMemory {
  int64_t elements, channels, taps;
  bool compact_state = true, compact_values = true;  // they hold the chosen rows alone, one behind the other

  // Of a tensor that is contiguous or fills channels_last.
  explicit RowMemory(const Tensor& param) {
    elements = param.numel() == 0 ? 0 : param.numel() / param.size(0);
    taps = param.is_contiguous() ? 1 : param.size(2) * param.size(3);
    channels = elements / std::max(int64_t{1}, taps);
  }
};

// A null state is one that is not kept. Rows and values become contiguous.
inline RowMemory checked_row_memory(const Tensor& param, const States& states, Tensor& rows, Tensor& values) {
  check_row_update(param, states, rows, values);
  make_contiguous(rows);
  make_contiguous(values);
  check_not_written(rows, values, param, states);
  RowMemory memory(param);
  for (const Tensor* state : states) memory.compact_state &= state == nullptr || state->size(0) != param.size(0);
  memory.compact_values = values.size(0) == rows.numel();
  return memory;
}

inline const Tensor* pointer(const std::optional<Tensor>& tensor) { return tensor ? &*tensor : nullptr; }

}  // namespace wuskern
