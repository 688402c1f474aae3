// What the ops ask of their arguments before they read or write anything: wuskern/ops/checks.py asks the same, but
// torch.ops.wuskern_native can be called past it, with anything that fits a schema.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <vector>

#include "stable_abi.h"

namespace wuskern {

// ---- tensors -------------------------------------------------------------------------------------------------------

// From Python, None is a tensor that is not defined.
inline void check_defined(const Tensor& t, const char* name) {
  STD_TORCH_CHECK(t.defined(), name, ": expected a tensor, got None");
}

inline bool same_device(const Tensor& a, const Tensor& b) {
  if (a.is_cpu()) return b.is_cpu();  // each question is a call into torch
  return !b.is_cpu() && a.is_cuda() == b.is_cuda() && a.get_device_index() == b.get_device_index();
}

inline void check_rank(const Tensor& t, const char* name, int64_t rank) {
  check_defined(t, name);
  STD_TORCH_CHECK(t.dim() == rank, name, ": expected ", rank, " dimensions, got ", t.dim());
}

inline void check_dtype(const Tensor& t, const char* name) {
  check_defined(t, name);
  const ScalarType dtype = t.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Double || dtype == ScalarType::Float || dtype == ScalarType::Half ||
                      dtype == ScalarType::BFloat16,
                  name, ": expected float64, float32, float16 or bfloat16");
}

// Of one dtype and device with `like`, the first argument.
inline void check_like(const Tensor& t, const char* name, const Tensor& like, const char* first = "dy") {
  check_defined(t, name);
  STD_TORCH_CHECK(same_device(t, like), name, ": expected it on the device of ", first);
  STD_TORCH_CHECK(t.scalar_type() == like.scalar_type(), name, ": expected the dtype of ", first);
}

inline void check_sizes(const Tensor& t, const char* name, const std::vector<int64_t>& sizes) {
  check_rank(t, name, sizes.size());
  for (int64_t d = 0; d < t.dim(); ++d) {
    STD_TORCH_CHECK(t.size(d) == sizes[d], name, ": expected ", sizes[d], " along dimension ", d, ", got ", t.size(d));
  }
}

inline bool fills_channels_last(const Tensor& t) {
  return t.dim() == 4 && is_channels_last(t.sizes().data(), t.strides().data());
}

// Indices of `size` rows, as far as they can be looked at without waiting for a device.
inline void check_index(const Tensor& rows, const Tensor& like, int64_t size, const char* first = "dy",
                        const char* name = "rows") {
  check_defined(rows, name);
  STD_TORCH_CHECK(same_device(rows, like), name, ": expected them on the device of ", first);
  STD_TORCH_CHECK(rows.scalar_type() == ScalarType::Long, name, ": expected int64");
  check_rank(rows, name, 1);
  STD_TORCH_CHECK(rows.numel() <= size, name, ": expected at most ", size, ", got ", rows.numel());
}

// On the CPU, the values too: within `size`; with `each_once`, ascending without a repetition.
inline void check_rows(const Tensor& rows, int64_t size, bool each_once = false, const char* name = "rows") {
  STD_TORCH_CHECK(rows.is_contiguous(), name, ": expected contiguous ones");
  const int64_t* const row = rows.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < rows.numel(); ++i) {
    STD_TORCH_CHECK(row[i] >= 0 && row[i] < size, name, ": expected indices from 0 to ", size - 1, ", got ", row[i]);
    STD_TORCH_CHECK(!each_once || i == 0 || row[i] > row[i - 1], name, ": expected them ascending, each once, got ",
                    row[i], " behind ", row[i - 1]);
  }
}

// Of select_rows: whole blocks of as many rows from each group.
inline void check_choice(const Tensor& scores, int64_t k, int64_t block, int64_t groups) {
  check_dtype(scores, "scores");
  check_rank(scores, "scores", 1);
  const int64_t n = scores.numel();
  STD_TORCH_CHECK(block >= 1, "block: expected at least 1, got ", block);
  STD_TORCH_CHECK(groups >= 1, "groups: expected at least 1, got ", groups);
  STD_TORCH_CHECK(block <= n && groups <= n / block && n % (block * groups) == 0, "scores: expected whole blocks of ",
                  block, " in ", groups, " groups, got ", n);
  STD_TORCH_CHECK(k >= 1 && k <= n && k % (block * groups) == 0, "k: expected whole blocks of ", block, " in ", groups,
                  " groups, up to ", n, ", got ", k);
}

// Whether no byte of `t` is one of `written`, whose elements fill their memory: what is read may not change under way.
inline void check_apart(const Tensor& t, const char* name, const Tensor& written, const char* its_name) {
  if (t.numel() == 0 || written.numel() == 0) return;
  const auto begin = [](const Tensor& a) { return static_cast<const char*>(a.const_data_ptr()); };
  const auto end = [&](const Tensor& a) {
    int64_t last = 0;
    for (int64_t d = 0; d < a.dim(); ++d) last += (a.size(d) - 1) * a.stride(d);
    return begin(a) + (last + 1) * static_cast<int64_t>(a.element_size());
  };
  STD_TORCH_CHECK(end(t) <= begin(written) || end(written) <= begin(t), name, ": expected other memory than that of ",
                  its_name);
}

// ---- convolutions --------------------------------------------------------------------------------------------------

using Pair = std::vector<int64_t>;  // (height, width)

constexpr int64_t kMostOfPair = int64_t{1} << 30;  // kernels count with int: sums of two fit
constexpr int64_t kMostTaps = (int64_t{1} << 31) - 1;
constexpr int64_t kMostPixels = (int64_t{1} << 31) - 1;  // along a side of an image, with its padding

inline void check_pair(const Pair& pair, const char* name, int64_t least) {
  STD_TORCH_CHECK(pair.size() == 2, name, ": expected two integers, got ", pair.size());
  for (const int64_t value : pair) {
    STD_TORCH_CHECK(value >= least && value < kMostOfPair, name, ": expected integers from ", least, " to 2^30, got ",
                    value);
  }
}

// That dy has the pixels which such a convolution makes of an input of `size`.
inline void check_pixels(const Tensor& dy, const Pair& size, const Pair& kernel, const Pair& stride,
                         const Pair& padding, const Pair& dilation) {
  check_rank(dy, "dy", 4);
  check_pair(kernel, "kernel_size", 1);
  check_pair(stride, "stride", 1);
  check_pair(padding, "padding", 0);
  check_pair(dilation, "dilation", 1);
  STD_TORCH_CHECK(size.size() == 2, "input_size: expected two integers, got ", size.size());
  STD_TORCH_CHECK(kernel[0] * kernel[1] <= kMostTaps, "kernel_size: expected fewer than 2^31 taps");
  for (int i = 0; i < 2; ++i) {
    STD_TORCH_CHECK(size[i] >= 0 && size[i] <= kMostPixels - 2 * padding[i],
                    "input_size: expected from 0 to 2^31 - 1 pixels with their padding, got ", size[i]);
    const int64_t padded = size[i] + 2 * padding[i], extent = dilation[i] * (kernel[i] - 1) + 1;
    STD_TORCH_CHECK(extent <= padded, "kernel_size: expected one that fits into ", padded,
                    " pixels with its dilation, got ", extent);
    const int64_t expected = (padded - extent) / stride[i] + 1;
    STD_TORCH_CHECK(dy.size(2 + i) == expected, "dy: expected ", expected, " pixels along dimension ", 2 + i, ", got ",
                    dy.size(2 + i));
  }
}

// The product of sizes, none of them negative: of elements that some memory may hold, so that what is computed with it
// does not overflow.
inline int64_t checked_product(std::initializer_list<int64_t> factors, const char* name) {
  constexpr int64_t most = int64_t{1} << 48;
  int64_t product = 1;
  for (const int64_t factor : factors) {
    STD_TORCH_CHECK(!__builtin_mul_overflow(product, factor, &product) && product <= most, name,
                    ": expected a problem of at most 2^48 elements");
  }
  return product;
}

}  // namespace wuskern
