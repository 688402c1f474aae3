// How the rows of a parameter lie in memory, and those of its state with it: what the row updates of both devices take.
#pragma once

#include <algorithm>
#include <initializer_list>

#include "checks.h"

namespace wuskern {

// A row is one run of `elements`. In channels_last it holds [taps, channels], where values hold [channels, taps]; taps
// is 1 where the two are the same.
struct RowMemory {
  int64_t elements, channels, taps;
};

// A null state is one that is not kept. What is written may be neither rows nor values: an index has been looked at
// once.
inline RowMemory row_memory(const Tensor& param, std::initializer_list<const Tensor*> states, const Tensor& rows,
                            const Tensor& values) {
  check_dtype(param, "param");
  STD_TORCH_CHECK(param.dim() >= 1, "param: expected at least one dimension");
  const int64_t elements = param.numel() == 0 ? 0 : param.numel() / param.size(0);
  const bool contiguous = param.is_contiguous();
  STD_TORCH_CHECK(contiguous || fills_channels_last(param), "param: expected a contiguous or channels_last one");
  std::vector<int64_t> sizes(param.sizes().begin(), param.sizes().end());
  for (const Tensor* state : states) {
    if (state == nullptr) continue;
    const bool same = contiguous ? state->is_contiguous() : fills_channels_last(*state);
    check_like(*state, "state", param, "param");
    check_sizes(*state, "state", sizes);
    STD_TORCH_CHECK(same, "state: expected the memory format of param");
    check_apart(rows, "rows", *state, "the state");
    check_apart(values, "values", *state, "the state");
  }
  check_index(rows, param, sizes[0], "param");
  sizes[0] = rows.numel();
  check_like(values, "values", param, "param");
  check_sizes(values, "values", sizes);
  STD_TORCH_CHECK(values.is_contiguous(), "values: expected contiguous ones");
  check_apart(rows, "rows", param, "param");
  check_apart(values, "values", param, "param");
  const int64_t taps = contiguous ? 1 : param.size(2) * param.size(3);
  return {elements, elements / std::max(int64_t{1}, taps), taps};
}

// Adam's count, on the CPU or where the parameter is.
inline void check_step(const Tensor& step, const Tensor& param, const Tensor& rows) {
  STD_TORCH_CHECK(step.is_cpu() || same_device(step, param), "step: expected it on the CPU or the device of param");
  STD_TORCH_CHECK(step.numel() == 1, "step: expected one number, got ", step.numel());
  STD_TORCH_CHECK(step.scalar_type() == ScalarType::Double || step.scalar_type() == ScalarType::Float,
                  "step: expected float32 or float64");
  check_apart(rows, "rows", step, "step");
}

inline const Tensor* pointer(const std::optional<Tensor>& tensor) { return tensor ? &*tensor : nullptr; }

template <typename T>
T* data_of(Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

template <typename T>
T* data_of(std::optional<Tensor>& tensor) {
  return tensor ? data_of<T>(*tensor) : nullptr;
}

}  // namespace wuskern
