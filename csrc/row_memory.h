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

// A null state is one that is not kept. Rows and values become contiguous. What is written is neither of them, nor the
// same memory twice: an index has been looked at once.
inline RowMemory row_memory(const Tensor& param, std::initializer_list<const Tensor*> states, Tensor& rows,
                            Tensor& values) {
  check_dtype(param, "param");
  STD_TORCH_CHECK(param.dim() >= 1, "param: expected at least one dimension");
  const bool contiguous = param.is_contiguous();
  STD_TORCH_CHECK(contiguous || fills_channels_last(param), "param: expected a contiguous or channels_last one");
  std::vector<int64_t> sizes(param.sizes().begin(), param.sizes().end());
  const int64_t elements = param.numel() == 0 ? 0 : param.numel() / sizes[0];
  std::vector<const Tensor*> written{&param};
  for (const Tensor* state : states) {
    if (state == nullptr) continue;
    check_like(*state, "state", param, "param");
    check_sizes(*state, "state", sizes);
    STD_TORCH_CHECK(contiguous ? state->is_contiguous() : fills_channels_last(*state),
                    "state: expected the memory format of param");
    for (const Tensor* other : written) check_apart(*state, "state", *other, "param or another state");
    written.push_back(state);
  }
  check_index(rows, param, sizes[0], "param");
  sizes[0] = rows.numel();
  check_like(values, "values", param, "param");
  check_sizes(values, "values", sizes);
  if (!rows.is_contiguous()) rows = torch::stable::contiguous(rows);
  if (!values.is_contiguous()) values = torch::stable::contiguous(values);
  for (const Tensor* t : written) {
    check_apart(rows, "rows", *t, "param or a state");
    check_apart(values, "values", *t, "param or a state");
  }
  const int64_t taps = contiguous ? 1 : param.size(2) * param.size(3);
  return {elements, elements / std::max(int64_t{1}, taps), taps};
}

// Adam's count, on the CPU or where the parameter is.
inline void check_step(const Tensor& step, const Tensor& param, const Tensor& rows) {
  check_defined(step, "step");
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
