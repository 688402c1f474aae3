// In which order gather_rows takes dimensions, on both devices.
#pragma once

#include <algorithm>
#include <vector>

#include "stable_abi.h"

namespace wuskern {

// How the result lies, and dy with it: in the order of its dimensions, or [B, H, W, C].
struct Order {
  bool channels_last;
  std::vector<int64_t> dims;

  explicit Order(const Tensor& dy)
      : channels_last(dy.dim() == 4 && !dy.is_contiguous() &&
                      is_channels_last(dy.sizes().data(), dy.strides().data())) {
    for (int64_t d = 0; d < dy.dim(); ++d) dims.push_back(d);
    if (channels_last) dims = {0, 2, 3, 1};
  }

  std::optional<Layout> fold(const Tensor& dy, int64_t dim) const {
    std::vector<int64_t> sizes, strides;
    for (const int64_t d : dims) {
      sizes.push_back(dy.size(d));
      strides.push_back(dy.stride(d));
    }
    const int64_t place = std::find(dims.begin(), dims.end(), dim) - dims.begin();
    return fold_in_order(sizes.data(), strides.data(), dy.dim(), place);
  }
};

}  // namespace wuskern
