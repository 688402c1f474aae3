// The one door to PyTorch: its stable ABI, and two words that it lacks.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <string>
#include <type_traits>

namespace wuskern {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// A string argument of a boxed kernel. TORCH_BOX would convert it too, and lose 32 bytes at every call (torch 2.13).
inline std::string take_string(StableIValue value) {
  const StringHandle handle = torch::stable::detail::to<StringHandle>(value);
  size_t length;
  const char* text;
  TORCH_ERROR_CODE_CHECK(torch_string_length(handle, &length));
  TORCH_ERROR_CODE_CHECK(torch_string_c_str(handle, &text));
  const std::string taken(text, length);
  TORCH_ERROR_CODE_CHECK(torch_delete_string(handle));
  return taken;
}

// Calls body(std::type_identity<T>) with the C++ type of a gradient's dtype; host and device spell the 16-bit ones
// differently.
template <typename Float16, typename BFloat16, typename Body>
void for_dtype(ScalarType dtype, Body&& body) {
  switch (dtype) {
    case ScalarType::Double:
      return body(std::type_identity<double>{});
    case ScalarType::Float:
      return body(std::type_identity<float>{});
    case ScalarType::Half:
      return body(std::type_identity<Float16>{});
    case ScalarType::BFloat16:
      return body(std::type_identity<BFloat16>{});
    default:
      STD_TORCH_CHECK(false, "expected float64, float32, float16 or bfloat16");
  }
}

}  // namespace wuskern
