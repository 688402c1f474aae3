// The one door to PyTorch: its stable ABI, and the few words that every op needs from it.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <vector>

#include "common/layout.h"

namespace wuskern {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline std::optional<Layout> fold(const Tensor& tensor, int64_t dim) {
  return fold(tensor.sizes().data(), tensor.strides().data(), tensor.dim(), dim);
}

inline Tensor new_vector(const Tensor& like, int64_t size, std::optional<ScalarType> dtype = std::nullopt) {
  return torch::stable::new_empty(like, {&size, 1}, dtype);
}

// `dim` counted from the front. The contract (wuskern/ops.py) has checked it; this guards memory.
inline int64_t front_dim(const Tensor& tensor, int64_t dim) {
  const int64_t front = dim < 0 ? dim + tensor.dim() : dim;
  STD_TORCH_CHECK(front >= 0 && front < tensor.dim(), "dim: expected one of a ", tensor.dim(), "-d tensor, got ", dim);
  return front;
}

}  // namespace wuskern
