// How gather_rows takes dy and lays out its result, on both devices.
#pragma once

#include <algorithm>
#include <vector>

#include "tensors.h"

namespace wuskern {

// Elements that the rows of a gathered Linear's dY are padded to on a GPU: 32 bytes of halves, which are what a GPU
// reads at least, and what makes Triton read vectors. wuskern/common/shapes.py has the same number.
constexpr int64_t kRowUnit = 16;

// The order of the dimensions in memory, of dy and of the result: as they are counted, or [B, H, W, C].
struct GatherOrder {
  bool channels_last;
  std::vector<int64_t> dims;

  explicit GatherOrder(const Tensor& dy) : channels_last(wants_channels_last(dy)) {
    for (int64_t d = 0; d < dy.dim(); ++d) dims.push_back(d);
    if (channels_last) dims = {0, 2, 3, 1};
  }

  // Of the shape of dy with k rows.
  Tensor new_result(const Tensor& dy, int64_t dim, int64_t k) const {
    std::vector<int64_t> sizes = sizes_of(dy);
    sizes[dim] = k;
    return new_images(dy, sizes, channels_last);
  }

  // [outer, rows, inner], the elements of inner next to each other; dy becomes a copy where it does not lie so.
  Layout layout(Tensor& dy, int64_t dim) const {
    return layout_or_copy(dy, [&](const Tensor& t) {
      const std::optional<Layout> folded = fold(t, dim);
      return folded && folded->inner_stride == 1 ? folded : std::nullopt;
    });
  }

 private:
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
