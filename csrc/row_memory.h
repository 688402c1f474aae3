// How the rows of a parameter lie in memory, and those of its state with it: what the row updates of both devices take.
#pragma once

#include <algorithm>
#include <initializer_list>

#include "stable_abi.h"

namespace wuskern {

// A row is one run of `elements`. In channels_last it holds [taps, channels], where values hold [channels, taps]; taps
// is 1 where the two are the same.
struct RowMemory {
  int64_t elements, channels, taps;
};

inline bool fills_channels_last(const Tensor& t) {
  return t.dim() == 4 && is_channels_last(t.sizes().data(), t.strides().data());
}

// Guards memory; wuskern/ops has checked the rest. A null state is one that is not kept.
inline RowMemory row_memory(const Tensor& param, std::initializer_list<const Tensor*> states, const Tensor& rows,
                            const Tensor& values) {
  STD_TORCH_CHECK(param.dim() >= 1, "param: expected at least one dimension");
  const int64_t elements = param.numel() == 0 ? 0 : param.numel() / param.size(0);
  const bool contiguous = param.is_contiguous();
  STD_TORCH_CHECK(contiguous || fills_channels_last(param), "param: expected a contiguous or channels_last one");
  for (const Tensor* state : states) {
    if (state == nullptr) continue;
    const bool same = contiguous ? state->is_contiguous() : fills_channels_last(*state);
    STD_TORCH_CHECK(same && state->numel() == param.numel() && state->dim() == param.dim() &&
                        state->size(0) == param.size(0) && state->scalar_type() == param.scalar_type(),
                    "state: expected size, dtype and memory format of param");
  }
  STD_TORCH_CHECK(values.is_contiguous() && values.scalar_type() == param.scalar_type(),
                  "values: expected contiguous ones in the dtype of param");
  STD_TORCH_CHECK(values.numel() == rows.numel() * elements, "values: expected ", rows.numel(), " rows of ", elements,
                  ", got ", values.numel(), " elements");
  const int64_t taps = contiguous ? 1 : param.size(2) * param.size(3);
  return {elements, elements / std::max(int64_t{1}, taps), taps};
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
