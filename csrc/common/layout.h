// How a gradient of the output lies in memory, whatever its rank: [outer, channels, inner].
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

namespace wuskern {

struct Layout {
  int64_t outer, channels, inner;
  int64_t outer_stride, channel_stride, inner_stride;  // in elements

  // One row of `channels` neighbours per outer index: Linear, or Conv2d in channels_last.
  bool is_rows() const { return inner == 1 && channel_stride == 1; }
  // `inner` neighbours per outer index and channel: Conv2d in the contiguous format.
  bool is_planes() const { return inner_stride == 1; }
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

  const int64_t channels = sizes[dim];
  const int64_t channel_stride = channels == 1 ? 1 : strides[dim];
  switch (folded.size()) {
    case 0:
      return Layout{1, channels, 1, channels, channel_stride, 1};
    case 1: {
      const auto [size, stride] = folded[0];
      if (stride == 1) return Layout{1, channels, size, channels * size, channel_stride, 1};
      return Layout{size, channels, 1, stride, channel_stride, 1};
    }
    case 2:
      return Layout{folded[0].size, channels, folded[1].size, folded[0].stride, channel_stride, folded[1].stride};
    default:
      return std::nullopt;
  }
}

}  // namespace wuskern
