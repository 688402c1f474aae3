// Twins of csrc/cuda/wgmma.h. Each thread computes its own results, when they are waited for.
#pragma once

#include <functional>
#include <map>

#include "mma.h"

namespace wuskern {

inline uint64_t tile_descriptor(uint32_t start, uint32_t across, uint32_t down) {
  const auto encode = [](uint32_t bytes) { return static_cast<uint64_t>((bytes & 0x3ffff) >> 4); };
  return encode(start) | encode(across) << 16 | encode(down) << 32 | uint64_t{1} << 62;
}

inline uint64_t further_in_tile(uint64_t descriptor, uint32_t bytes) { return descriptor + (bytes >> 4); }

namespace emulation {

// Bits 0 to 13: start; 16 to 29: leading offset; 32 to 45: stride offset; all in 16 bytes. 49 to 51: where the pattern
// starts; 62 and 63: the swizzle, 1 for 128 bytes, which flips bits 4 to 6 of an address by its bits 7 to 9.
struct Tile {
  uint32_t start, leading, stride;

  explicit Tile(uint64_t descriptor)
      : start(descriptor << 4 & 0x3fff0), leading(descriptor >> 12 & 0x3fff0), stride(descriptor >> 28 & 0x3fff0) {
    if (descriptor >> 62 != 1 || (descriptor >> 49 & 7) != 0) fail("wgmma: a descriptor that is not emulated");
  }

  // Along the sums (`k`) and across (`mn`). Transposed, memory runs along mn: 64 of them are 128 bytes, the next 64 lie
  // `leading` further, the next 8 of k `stride`. Else it runs along k, and the next 8 of mn lie `stride` further.
  uint32_t address(int mn, int k, bool transposed) const {
    const uint32_t at = transposed ? start + mn / 64 * leading + k / 8 * stride + k % 8 * 128 + mn % 64 * 2
                                   : start + mn / 8 * stride + mn % 8 * 128 + k * 2;
    const uint32_t swizzled = at ^ (at >> 7 & 7) << 4;
    if (hidden_chunks()[swizzled / 16]) fail("wgmma reads what cp.async wrote without a fence between them");
    return swizzled;
  }
};

struct Wgmma {
  std::vector<std::function<void()>> open;
  std::deque<std::vector<std::function<void()>>> groups;
  std::map<float*, std::pair<int, std::vector<float>>> sums;  // at work: how often they are added to, and their values
  bool fenced = false;
};

// Rows 16 * (warp of the warpgroup) + lane / 4 and 8 more, columns 8 i + 2 * (lane % 4) and the next one.
template <typename T, int n>
void multiply_tiles(float* d, uint64_t a, uint64_t b, bool transposed_a) {
  const Tile tile_a(a), tile_b(b);
  const int g = thread_number() % 128 / 32 * 16 + lane() / 4, t = lane() % 4 * 2;
  float row[2][16];
  for (int k = 0; k < 16; ++k) {
    for (int i = 0; i < 2; ++i) row[i][k] = element<T>(tile_a.address(g + 8 * i, k, transposed_a));
  }
  for (int i = 0; i < n / 8; ++i) {
    for (int j = 0; j < 2; ++j) {
      float sum[2] = {};
      for (int k = 0; k < 16; ++k) {
        const float other = element<T>(tile_b.address(i * 8 + t + j, k, true));
        for (int r = 0; r < 2; ++r) sum[r] += row[r][k] * other;
      }
      for (int r = 0; r < 2; ++r) d[i * 4 + r * 2 + j] += sum[r];
    }
  }
}

}  // namespace emulation

inline void fence_wgmma() { emulation::of_thread<emulation::Wgmma>().fenced = true; }

inline void commit_wgmma() {
  auto& mine = emulation::of_thread<emulation::Wgmma>();
  mine.groups.push_back(std::move(mine.open));
  mine.open.clear();
}

template <int pending>
void wait_for_wgmma() {
  auto& mine = emulation::of_thread<emulation::Wgmma>();
  for (; mine.groups.size() > pending; mine.groups.pop_front()) {
    for (const auto& work : mine.groups.front()) work();
  }
  mine.fenced = false;
}

template <typename T, int n, int transposed_a>
void multiply_add_async(float (&d)[n / 8][4], uint64_t a, uint64_t b, WUSKERN_HERE) {
  emulation::ballot("wgmma", 0xffffffffu, 0, where);
  auto& mine = emulation::of_thread<emulation::Wgmma>();
  if (!mine.fenced) emulation::fail("wgmma without wgmma.fence before it");
  float* const at = &d[0][0];
  auto& [uses, values] = mine.sums[at];
  if (uses++ == 0) {
    values.assign(at, at + n / 2);
    std::fill(at, at + n / 2, NAN);
  }
  mine.open.push_back([at, a, b, &mine] {
    auto& [left, sums] = mine.sums[at];
    emulation::multiply_tiles<T, n>(sums.data(), a, b, transposed_a);
    if (--left == 0) std::copy(sums.begin(), sums.end(), at);
  });
}

}  // namespace wuskern
