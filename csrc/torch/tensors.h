// The tensors of an op: the one place that allocates them, where their elements are, and copies of those that do not
// lie as its kernels want.
#pragma once

#include <array>
#include <optional>

#include "../common/layout.h"
#include "stable_abi.h"

namespace wuskern {

using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;

// Every output and every temporary tensor, not yet written: on the device of `like`, and of its dtype if none is given.
inline Tensor new_tensor(const Tensor& like, Sizes sizes, std::optional<ScalarType> dtype = std::nullopt) {
  return torch::stable::new_empty(like, sizes, dtype);
}

// The same with strides.
inline Tensor new_strided(const Tensor& like, Sizes sizes, Sizes strides) {
  const std::optional<ScalarType> as_like;
  std::array<StableIValue, 7> stack{
      torch::stable::detail::from(like),         torch::stable::detail::from(sizes),
      torch::stable::detail::from(strides),      torch::stable::detail::from(as_like),
      torch::stable::detail::from(std::nullopt), torch::stable::detail::from(std::nullopt),
      torch::stable::detail::from(std::nullopt)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::new_empty_strided", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// The same for images [B, C, H, W], where asked for in channels_last.
inline Tensor new_images(const Tensor& like, Sizes sizes, bool channels_last) {
  if (!channels_last) return new_tensor(like, sizes);
  const int64_t strides[] = {sizes[1] * sizes[2] * sizes[3], 1, sizes[1] * sizes[3], sizes[1]};
  return new_strided(like, sizes, Sizes(strides, 4));
}

template <typename T>
T* data_of(Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

template <typename T>
T* data_of(std::optional<Tensor>& tensor) {
  return tensor ? data_of<T>(*tensor) : nullptr;
}

template <typename T>
const T* const_data_of(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

inline const int64_t* indices_of(const Tensor& rows) { return const_data_of<int64_t>(rows); }

inline std::vector<int64_t> sizes_of(const Tensor& tensor) { return {tensor.sizes().begin(), tensor.sizes().end()}; }

inline void make_contiguous(Tensor& tensor) {
  if (!tensor.is_contiguous()) tensor = torch::stable::contiguous(tensor);
}

inline bool fills_memory(const Tensor& tensor) {
  return tensor.numel() > 0 && fills_memory(tensor.sizes().data(), tensor.strides().data(), tensor.dim());
}

// A tensor whose elements are one run of memory: itself, or a contiguous copy.
inline void make_filled(Tensor& tensor) {
  if (!fills_memory(tensor)) make_contiguous(tensor);
}

// Not yet written, of the shape and the strides of a tensor that fills its memory or is contiguous.
inline Tensor new_like(const Tensor& tensor) {
  if (tensor.is_contiguous()) return new_tensor(tensor, tensor.sizes());
  return new_strided(tensor, tensor.sizes(), tensor.strides());
}

// The layout that fold(tensor) finds. Where it finds none, the tensor becomes a contiguous copy, which has one.
template <typename Fold>
Layout layout_or_copy(Tensor& tensor, Fold&& fold) {
  if (const std::optional<Layout> layout = fold(tensor)) return *layout;
  tensor = torch::stable::contiguous(tensor);
  return *fold(tensor);
}

inline std::optional<Layout> fold(const Tensor& tensor, int64_t dim) {
  return fold(tensor.sizes().data(), tensor.strides().data(), tensor.dim(), dim);
}

inline bool fills_channels_last(const Tensor& tensor) {
  return tensor.dim() == 4 && is_channels_last(tensor.sizes().data(), tensor.strides().data());
}

// Whether what is made of a tensor lies in channels_last: where both formats fit, it does not.
inline bool wants_channels_last(const Tensor& tensor) { return !tensor.is_contiguous() && fills_channels_last(tensor); }

}  // namespace wuskern
