// What the ops of both devices ask of their arguments before they read or write anything: wuskern/ops/checks.py asks
// the same, but torch.ops.wuskern_native can be called past it, with anything that fits a schema.
#pragma once

#include <initializer_list>
#include <string>
#include <vector>

#include "../common/score.h"
#include "tensors.h"

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

// `dim` counted from the front.
inline int64_t front_dim(const Tensor& tensor, int64_t dim) {
  const int64_t front = dim < 0 ? dim + tensor.dim() : dim;
  STD_TORCH_CHECK(front >= 0 && front < tensor.dim(), "dim: expected one of a ", tensor.dim(), "-d tensor, got ", dim);
  return front;
}

// Of unfold_gradient.
inline void check_order(int64_t order) {
  STD_TORCH_CHECK(order >= 0 && order <= 2, "order: expected 0, 1 or 2, got ", order);
}

inline Score checked_score(const std::string& name) {
  STD_TORCH_CHECK(name == "l1" || name == "l2", "score: expected l1 or l2, got ", name);
  return name == "l1" ? Score::l1 : Score::l2;
}

// ---- memory --------------------------------------------------------------------------------------------------------

inline void check_contiguous(const Tensor& t, const char* name) {
  STD_TORCH_CHECK(t.is_contiguous(), name, ": expected contiguous ones");
}

// That a tensor, some of whose rows are written, has rows, each of which is dense.
inline void check_rows_of(const Tensor& t, const char* name) {
  check_dtype(t, name);
  STD_TORCH_CHECK(t.dim() >= 1, name, ": expected at least one dimension");
  STD_TORCH_CHECK(t.is_contiguous() || fills_channels_last(t), name, ": expected a contiguous or channels_last one");
}

// That images fill their memory in one of the two formats.
inline void check_format(const Tensor& images, const char* name, bool channels_last) {
  const int64_t channels = images.size(1), width = images.size(3), pixels = images.size(2) * width;
  const int64_t step = channels_last ? channels : 1;  // between pixels
  const int64_t expected[] = {channels * pixels, channels_last ? 1 : pixels, step * width, step};
  for (int i = 0; i < 4; ++i) {
    STD_TORCH_CHECK(images.size(i) == 1 || images.stride(i) == expected[i], name, ": expected dense ",
                    channels_last ? "channels_last" : "contiguous", " strides");
  }
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

// The same of a size that a caller has given.
inline void check_new(const Tensor& like, const std::vector<int64_t>& size) {
  check_defined(like, "like");
  int64_t bytes = like.element_size();
  for (const int64_t side : size) {
    STD_TORCH_CHECK(side >= 0, "size: expected at least 0, got ", side);
    bytes = checked_product({bytes, side}, "size");
  }
}

// ---- rows ----------------------------------------------------------------------------------------------------------

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
  check_contiguous(rows, name);
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

using States = std::vector<const Tensor*>;  // of a parameter; a null one is not kept

// Of an update of the chosen rows of `param` and its states, one of which is never the memory of another. All states
// have the rows of param, or the chosen ones alone, and so have values.
inline void check_row_update(const Tensor& param, const States& states, const Tensor& rows, const Tensor& values) {
  check_rows_of(param, "param");
  std::vector<int64_t> sizes = sizes_of(param);
  check_index(rows, param, sizes[0], "param");
  const bool contiguous = param.is_contiguous();
  States written{&param};
  for (const Tensor* state : states) {
    if (state == nullptr) continue;
    check_like(*state, "state", param, "param");
    if (written.size() == 1 && state->dim() >= 1 && state->size(0) == rows.numel()) sizes[0] = rows.numel();
    check_sizes(*state, "state", sizes);
    STD_TORCH_CHECK(contiguous ? state->is_contiguous() : fills_channels_last(*state),
                    "state: expected the memory format of param");
    for (const Tensor* other : written) check_apart(*state, "state", *other, "param or another state");
    written.push_back(state);
  }
  check_like(values, "values", param, "param");
  check_rank(values, "values", param.dim());
  sizes[0] = values.size(0) == param.size(0) ? param.size(0) : rows.numel();
  check_sizes(values, "values", sizes);
}

// What the update reads, made contiguous: an index has been looked at once.
inline void check_not_written(const Tensor& rows, const Tensor& values, const Tensor& param, States written) {
  written.insert(written.begin(), &param);
  for (const Tensor* t : written) {
    if (t == nullptr) continue;
    check_apart(rows, "rows", *t, "param or a state");
    check_apart(values, "values", *t, "param or a state");
  }
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

// ---- convolutions --------------------------------------------------------------------------------------------------

using Pair = std::vector<int64_t>;  // (height, width)

// Of a convolution. A Linear is one of a single tap on images of one pixel.
struct Geometry {
  Pair kernel{1, 1}, stride{1, 1}, padding{0, 0}, dilation{1, 1};
  int64_t groups = 1;
};

constexpr int64_t kMostOfPair = int64_t{1} << 30;  // kernels count with int: sums of two fit
constexpr int64_t kMostTaps = (int64_t{1} << 31) - 1;
constexpr int64_t kMostPixels = (int64_t{1} << 31) - 1;  // along a side of an image, with its padding
constexpr int64_t kMostPhases = (int64_t{1} << 31) - 1;  // blocks of threads in a grid

inline void check_pair(const Pair& pair, const char* name, int64_t least) {
  STD_TORCH_CHECK(pair.size() == 2, name, ": expected two integers, got ", pair.size());
  for (const int64_t value : pair) {
    STD_TORCH_CHECK(value >= least && value < kMostOfPair, name, ": expected integers from ", least, " to 2^30, got ",
                    value);
  }
}

// That dy has the pixels which such a convolution makes of an input of `size`.
inline void check_pixels(const Tensor& dy, const Pair& size, const Geometry& geometry) {
  const auto& [kernel, stride, padding, dilation, _] = geometry;
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

inline void check_batch(const Tensor& images, const char* name, const Tensor& dy) {
  STD_TORCH_CHECK(images.size(0) == dy.size(0), name, ": expected a batch of ", dy.size(0), ", got ", images.size(0));
}

// Of the matrix that csrc/cpu/unfold.h makes of dy; with a tile and its border.
inline void check_unfold(const Tensor& dy, const Pair& size, const Geometry& geometry) {
  const auto& [kernel, stride, padding, dilation, _] = geometry;
  check_pixels(dy, size, geometry);
  checked_product({dy.size(0), size[0], size[1]}, "input_size");
  checked_product({kernel[0], kernel[1], dy.size(1)}, "kernel_size");
  checked_product({size[0] + 2 * padding[0], size[1] + 2 * padding[1], dy.size(1)}, "padding");
}

// ---- row-sparse products -------------------------------------------------------------------------------------------

inline void check_operands(const Tensor& dy, const Tensor& other, const char* name) {
  check_dtype(dy, "dy");
  check_like(other, name, dy);
}

// Of the products in float32 alone.
inline void check_float(const Tensor& dy, const Tensor& other, const char* name) {
  check_defined(dy, "dy");
  STD_TORCH_CHECK(dy.scalar_type() == ScalarType::Float, "dy: expected float32");
  check_like(other, name, dy);
}

// Of a Linear: dy [..., N or k].
inline void check_wgrad(const Tensor& dy, const Tensor& x, const Tensor& rows) {
  check_operands(dy, x, "x");
  STD_TORCH_CHECK(dy.dim() >= 1, "dy: expected at least one dimension");
  std::vector<int64_t> sizes = sizes_of(dy);
  check_rank(x, "x", dy.dim());
  sizes.back() = x.size(-1);
  check_sizes(x, "x", sizes);
  check_index(rows, dy, dy.size(-1));
}

// dy holds all units of the weight, or the chosen ones.
inline void check_units(const Tensor& dy, int64_t dim, const Tensor& weight, const Tensor& rows) {
  check_index(rows, dy, weight.size(0));
  STD_TORCH_CHECK(dy.size(dim) == weight.size(0) || dy.size(dim) == rows.numel(), "dy: expected ", weight.size(0),
                  " units as weight has, or those of ", rows.numel(), " rows, got ", dy.size(dim));
}

inline void check_dgrad(const Tensor& dy, const Tensor& weight, const Tensor& rows) {
  check_operands(dy, weight, "weight");
  STD_TORCH_CHECK(dy.dim() >= 1, "dy: expected at least one dimension");
  check_rank(weight, "weight", 2);
  check_units(dy, -1, weight, rows);
}

// Rows and channels of dy come in groups.
inline void check_groups(const Tensor& dy, const Tensor& rows, int64_t groups) {
  STD_TORCH_CHECK(groups >= 1 && groups <= kMostTaps && rows.numel() % groups == 0 && dy.size(1) % groups == 0,
                  "groups: expected a divisor of ", rows.numel(), " rows and ", dy.size(1), " channels of dy, got ",
                  groups);
}

inline void check_wgrad_conv2d(const Tensor& dy, const Tensor& x, const Tensor& rows, const Geometry& geometry) {
  check_operands(dy, x, "x");
  check_rank(x, "x", 4);
  check_pixels(dy, {x.size(2), x.size(3)}, geometry);
  check_batch(x, "x", dy);
  check_index(rows, dy, dy.size(1));
  check_groups(dy, rows, geometry.groups);
  STD_TORCH_CHECK(x.size(1) % geometry.groups == 0, "x: expected a multiple of ", geometry.groups, " channels, got ",
                  x.size(1));
}

// Of a weight that check_operands has seen, and whose kernel is that of the geometry.
inline void check_dgrad_conv2d(const Tensor& dy, const Tensor& weight, const Tensor& rows, const Pair& size,
                               const Geometry& geometry) {
  const auto& [kernel, stride, padding, dilation, groups] = geometry;
  check_pixels(dy, size, geometry);
  check_units(dy, 1, weight, rows);
  check_groups(dy, rows, groups);
  STD_TORCH_CHECK(weight.size(0) % groups == 0, "weight: expected a multiple of ", groups, " units, got ",
                  weight.size(0));
  const int64_t phases = checked_product({stride[0], stride[1], groups}, "stride");
  STD_TORCH_CHECK(phases <= kMostPhases, "stride: expected fewer than 2^31 pixels between two, in all groups, got ",
                  phases);
  checked_product({dy.size(0), weight.size(1), groups, size[0], size[1]}, "input_size");
}

// What kernels of csrc/cuda count with 31 bits, of a group: the features of a row of dW, and the terms of a sum of dX.
inline void check_counts(int64_t taps, int64_t channels, int64_t rows) {
  STD_TORCH_CHECK(channels <= kMostTaps / taps && rows <= kMostTaps / taps, "kernel_size: expected ", taps,
                  " taps of fewer than 2^31 features");
}

}  // namespace wuskern
