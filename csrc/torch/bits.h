// The arguments of pack_bits, piecewise_, scale_by_bits and scale_channels, as both devices take them.
#pragma once

#include "../common/bits.h"
#include "../common/reduction.h"
#include "checks.h"
#include "tensors.h"

namespace wuskern {

inline Tensor new_bits(const Tensor& x) { return new_tensor(x, {ceil_div(x.numel(), kBitsOfByte)}, ScalarType::Byte); }

// Whether x holds truth values, which have kernels of their own; else it holds floating numbers.
inline bool checked_truth(const Tensor& x) {
  check_defined(x, "x");
  if (x.scalar_type() == ScalarType::Bool) return true;
  check_dtype(x, "x");
  return false;
}

inline void check_line(const Tensor& t, const char* name, const Tensor& dy, int64_t n) {
  check_rank(t, name, 1);
  STD_TORCH_CHECK(same_device(t, dy), name, ": expected it on the device of dy");
  STD_TORCH_CHECK(t.size(0) == n, name, ": expected ", n, " of them, got ", t.size(0));
  check_contiguous(t, name);
}

inline void check_bits(const Tensor& dy, const Tensor& bits) {
  check_dtype(dy, "dy");
  check_line(bits, "bits", dy, ceil_div(dy.numel(), kBitsOfByte));
  STD_TORCH_CHECK(bits.scalar_type() == ScalarType::Byte, "bits: expected uint8");
}

inline void check_piecewise(const Tensor& y, const Tensor& x, bool nan, const std::optional<double>& outside) {
  check_dtype(x, "x");
  check_like(y, "y", x, "x");
  check_sizes(y, "y", sizes_of(x));
  STD_TORCH_CHECK(x.numel() == 0 || (fills_memory(x) && sizes_of(y) == sizes_of(x)),
                  "x: expected it to fill its memory");
  for (int64_t i = 0; i < x.dim(); ++i) {
    STD_TORCH_CHECK(x.size(i) == 1 || x.stride(i) == y.stride(i), "y: expected the strides of x");
  }
  if (x.const_data_ptr() != y.const_data_ptr()) check_apart(x, "x", y, "y");
  STD_TORCH_CHECK(nan || outside.has_value(), "nan: expected True without outside");
}

inline void check_scale(const Tensor& dy, const Tensor& scale, int64_t dim) {
  check_dtype(dy, "dy");
  check_line(scale, "scale", dy, dy.size(front_dim(dy, dim)));
  const ScalarType wide = dy.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  STD_TORCH_CHECK(scale.scalar_type() == wide, "scale: expected float32, or float64 for float64");
}

// A tensor with elements, which fills its memory, as [outer, channels, inner]: what is slower than the channels, and
// what is faster.
inline Layout channels_of(const Tensor& dy, int64_t dim) {
  const int64_t channels = dy.size(dim), inner = channels == 1 ? dy.numel() : dy.stride(dim);
  return {dy.numel() / (channels * inner), channels, inner, channels * inner, inner, 1};
}

}  // namespace wuskern
