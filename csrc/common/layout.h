// How a gradient of the output lies in memory, whatever its rank: [outer, channels, inner].
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

namespace wuskern {

struct Layout {
  int64_t outer, channels, inner;
  int64_t outer_stride, channel_stride, inner_stride;  // in elements

  // One row of `channels` neighbours per outer index: Linear, or Conv2d in channels_last.
  bool is_rows() const { return inner == 1 && channel_stride == 1; }
  // Rows without gaps between them.
  bool is_dense_rows() const { return is_rows() && outer_stride == channels; }
  // `inner` neighbours per outer index and channel: Conv2d in the contiguous format.
  bool is_planes() const { return inner_stride == 1 && inner > 1; }
  // All channels of one outer index in one run of memory.
  bool is_dense_planes() const { return is_planes() && channel_stride == inner; }
};

// Folds the dimensions around `dim` into at most two without moving data; nullopt where that cannot be done (the
// caller then copies). The outer dimension is the one with the larger stride. No dimension may be empty.
inline std::optional<Layout> fold(const int64_t* sizes, const int64_t* strides, int64_t rank, int64_t dim) {
  struct Axis {
    int64_t size, stride;
  };
  std::vector<Axis> axes;
  for (int64_t d = 0; d < rank; ++d) {
    if (d != dim && sizes[d] > 1) axes.push_back({sizes[d], strides[d]});
  }
  std::stable_sort(axes.begin(), axes.end(), [](const Axis& a, const Axis& b) { return a.stride > b.stride; });

  std::vector<Axis> folded;
  for (const Axis& axis : axes) {
    if (!folded.empty() && folded.back().stride == axis.stride * axis.size) {
      folded.back() = {folded.back().size * axis.size, axis.stride};
    } else {
      folded.push_back(axis);
    }
  }

  Layout layout{1, sizes[dim], 1, 0, strides[dim], 1};
  if (folded.size() > 2) return std::nullopt;
  if (folded.size() == 2 || (folded.size() == 1 && folded[0].stride == 1)) {
    layout.inner = folded.back().size;
    layout.inner_stride = folded.back().stride;
    folded.pop_back();
  }
  if (!folded.empty()) {
    layout.outer = folded[0].size;
    layout.outer_stride = folded[0].stride;
  }
  if (layout.channels == 1) layout.channel_stride = layout.inner;  // never stepped: let it fit the others
  return layout;
}

// As fold, but in order: the dimensions before `dim` become the outer one, those after it the inner one.
inline std::optional<Layout> fold_in_order(const int64_t* sizes, const int64_t* strides, int64_t rank, int64_t dim) {
  Layout layout{1, sizes[dim], 1, 0, strides[dim], 1};
  for (int64_t d = rank - 1; d >= 0; --d) {
    int64_t& size = d < dim ? layout.outer : layout.inner;
    int64_t& stride = d < dim ? layout.outer_stride : layout.inner_stride;
    if (d == dim || sizes[d] == 1) continue;
    if (size > 1 && strides[d] != size * stride) return std::nullopt;
    if (size == 1) stride = strides[d];
    size *= sizes[d];
  }
  return layout;
}

// Whether the elements are one run of memory, in whatever order of the dimensions; strides of single elements do not
// count. No dimension may be empty.
inline bool fills_memory(const int64_t* sizes, const int64_t* strides, int64_t rank) {
  std::vector<std::pair<int64_t, int64_t>> axes;  // stride, size
  for (int64_t d = 0; d < rank; ++d) {
    if (sizes[d] != 1) axes.push_back({strides[d], sizes[d]});
  }
  std::sort(axes.begin(), axes.end());
  int64_t dense = 1;
  for (const auto& [stride, size] : axes) {
    if (stride != dense) return false;
    dense *= size;
  }
  return true;
}

// Whether a tensor of four dimensions fills [B, H, W, C] without gaps; strides of single elements do not count.
inline bool is_channels_last(const int64_t* sizes, const int64_t* strides) {
  int64_t dense = 1;
  for (const int d : {1, 3, 2, 0}) {
    if (sizes[d] != 1 && strides[d] != dense) return false;
    dense *= sizes[d];
  }
  return true;
}

}  // namespace wuskern
