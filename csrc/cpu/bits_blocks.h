// How the elements of pack_bits, piecewise_ and scale_by_bits are shared out among threads.
#pragma once

#include <algorithm>

#include "../torch/bits.h"
#include "bits_kernels.h"

namespace wuskern {

constexpr int64_t kBlock = 4096;       // elements, whole bytes of bits
constexpr int64_t kBlocksPerTask = 8;  // fewer are not worth another thread

// Calls body(first element, elements) for pieces of n.
template <typename Body>
void for_blocks(int64_t n, Body&& body) {
  torch::stable::parallel_for(0, ceil_div(n, kBlock), kBlocksPerTask, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * kBlock;
    body(first, std::min(end * kBlock, n) - first);
  });
}

}  // namespace wuskern
