// Which block of a row-sparse product computes what, and with which tile. Pure functions of the problem and of the GPU:
// a sum has the same bits every time, whoever computes which part when. Tested on the CPU.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "inline.h"
#include "reduction.h"

namespace wuskern {

// n / value for 0 <= n < 2^31 by one multiplication.
struct Divisor {
  uint32_t value = 1, factor = 1u << 31;
  int shift = 31;

  Divisor() = default;
  explicit Divisor(int64_t by) : value(static_cast<uint32_t>(by)) {
    while ((uint64_t{1} << (shift - 31)) < value) ++shift;
    factor = static_cast<uint32_t>(((uint64_t{1} << shift) + value - 1) / value);
  }

  WUSKERN_HOST_DEVICE uint32_t quotient(uint32_t n) const {
    return static_cast<uint32_t>((static_cast<uint64_t>(n) * factor) >> shift);
  }
};

// ---- tiles ---------------------------------------------------------------------------------------------------------

// A block of kGemmThreads computes kTileM x n results, kTileDepth terms of their sums at a time. A stage is what it
// loads for those.
constexpr int kGemmThreads = 256;
constexpr int kTileM = 128;
constexpr int kTileDepth = 64;
constexpr int kPanel = 64;  // columns of 16 bits that lie side by side in shared memory: 128 bytes
constexpr int kWidestTile = 256;
constexpr int kLeastWgmma = 64;  // narrower tiles take mma.sync on Hopper too: they wait for memory

WUSKERN_HOST_DEVICE constexpr int tile_stages(int n) { return n == kWidestTile ? 4 : 3; }
WUSKERN_HOST_DEVICE constexpr int tile_stage_bytes(int n) {
  return 2 * kTileDepth * (kTileM + (n < kPanel ? kPanel : n));
}
WUSKERN_HOST_DEVICE constexpr int tile_shared_bytes(int n) { return tile_stages(n) * tile_stage_bytes(n); }

// Blocks whose registers one processor holds: operands of mma.sync take registers too, those of wgmma do not.
WUSKERN_HOST_DEVICE constexpr int tile_blocks(int n, bool wgmma) { return n < 128 || (n == 128 && wgmma) ? 2 : 1; }

// What decides on a GPU: 10 * major + minor of its compute capability, its streaming multiprocessors, and whether the
// code that it runs has wgmma.
struct Gpu {
  int capability;
  int64_t processors;
  bool wgmma;

  // Bytes of shared memory of one processor; a block takes 1024 less at most.
  int shared_bytes() const {
    const bool large = capability == 90 || capability / 10 == 10 || capability / 10 == 11;
    return (large ? 228 : capability == 80 || capability == 87 ? 164 : 100) * 1024;
  }
  // That run at once. The widest tile is compiled for wgmma alone.
  int64_t blocks(int n) const {
    const int fit = shared_bytes() / (tile_shared_bytes(n) + 1024), most = tile_blocks(n, wgmma);
    return processors * (fit < most ? fit : most);
  }
};

// The tile that has so many columns.
WUSKERN_HOST_DEVICE constexpr int tile_of_columns(int columns) {
  return columns <= 32 ? 32 : columns <= 64 ? 64 : columns <= 128 ? 128 : kWidestTile;
}

// dW has the features of x along m and the chosen rows along n. How many columns of a tile are multiplied: those that
// together cost least. A block costs its columns and about a quarter of kTileM more. wgmma takes fewer than its tile
// has where one tile holds all rows, and 5 % of 4096 are 204; what is loaded, and where it lies, is the whole tile's,
// zeros where there is no row.
inline int wgrad_columns(int64_t k, const Gpu& gpu) {
  int best = 32;
  int64_t least = -1;
  for (const int columns : {32, 64, 96, 128, 160, 192, 208, kWidestTile}) {
    const bool whole = columns == tile_of_columns(columns);
    if (!gpu.wgmma && (!whole || columns == kWidestTile)) continue;
    if (!whole && k > columns) continue;
    const int64_t cost = ceil_div(k, columns) * (columns + kTileM / 4);
    if (least < 0 || cost < least) {
      least = cost;
      best = columns;
    }
  }
  return best;
}

inline int wgrad_tile(int64_t k, const Gpu& gpu) { return tile_of_columns(wgrad_columns(k, gpu)); }

// dX has tokens (pixels) along m and features along n. `columns` are the features of a group, `others` how many such
// matrices of m rows there are: the widest tile that leaves no processor idle. A block that is alone on its processor
// writes its tile while nothing is loaded: that pays for long sums only.
constexpr int64_t kLongSum = 512;

inline int dgrad_tile(int64_t m, int64_t columns, int64_t terms, int64_t others, const Gpu& gpu) {
  for (const int n : {kWidestTile, 128}) {
    if (n == kWidestTile && !(gpu.wgmma && terms >= kLongSum)) continue;
    const bool enough = ceil_div(m, kTileM) * ceil_div(columns, n) * others >= gpu.blocks(n);
    if (enough && columns > n / 2) return n;
  }
  return 64;
}

// ---- schedules -----------------------------------------------------------------------------------------------------

// dW: every tile is summed in `splits` parts of its `steps`. Blocks that run together share their part of the tokens,
// so that x and dy come from the L2 cache when a second tile needs them.
struct WgradSchedule {
  int64_t groups, feature_blocks, row_blocks, steps, splits;

  struct Place {
    int64_t group, feature_block, row_block, split;
  };

  WUSKERN_HOST_DEVICE int64_t tiles() const { return groups * feature_blocks * row_blocks; }
  WUSKERN_HOST_DEVICE int64_t blocks() const { return tiles() * splits; }
  // The number of the tile that a block has a part of.
  WUSKERN_HOST_DEVICE int64_t tile(int64_t block) const { return block % tiles(); }
  WUSKERN_HOST_DEVICE Place at(int64_t block) const {
    const int64_t tile = block / row_blocks, column = tile / feature_blocks;
    return {column % groups, tile % feature_blocks, block % row_blocks, column / groups};
  }
  WUSKERN_HOST_DEVICE int64_t first_step(int64_t split) const {
    return steps / splits * split + (split < steps % splits ? split : steps % splits);
  }
};

constexpr int64_t kMostSplits = 256;
constexpr int64_t kLeastSteps = 4;  // of a part; fewer are not worth their partial sums

// The number of parts that takes the least time, in steps of one block: the waves of blocks, each as long as its steps,
// a start, and where there are several parts the writing and reading of a partial tile in units of a step's loads.
inline int64_t wgrad_splits(int64_t tiles, int64_t steps, int m, int n, int64_t slots) {
  const int64_t start = 3, partial = ceil_div(int64_t{8} * m * n, int64_t{2} * kTileDepth * (m + n));
  int64_t best = 1, least = -1;
  for (int64_t splits = 1; splits <= kMostSplits && (splits == 1 || splits * kLeastSteps <= steps); ++splits) {
    const int64_t length = ceil_div(steps, splits) + start + (splits > 1 ? partial : 0);
    const int64_t cost = ceil_div(tiles * splits, slots) * length + (splits > 1 ? splits / 8 : 0);
    if (least < 0 || cost < least) {
      least = cost;
      best = splits;
    }
  }
  return best;
}

// Whether the last block of a tile adds its partial sums, in fp32: one processor takes about 64 bytes a cycle from L2,
// so that for half a MiB it takes 5 us, as a launch and its first loads do.
constexpr int64_t kMostJoined = 512 * 1024;

inline bool blocks_join(int64_t splits, int64_t k, int n) {
  return splits * (k < n ? k : n) * kTileM * 4 <= kMostJoined;
}

struct TileShape {
  int m, n, depth;  // features, rows, and the terms of a step
};

// For `slots` blocks that run at once.
inline WgradSchedule wgrad_schedule(int64_t groups, int64_t features, int64_t k, int64_t tokens, const TileShape& tile,
                                    int64_t slots) {
  WgradSchedule s{groups, ceil_div(features, tile.m), ceil_div(k, tile.n), ceil_div(tokens, tile.depth), 1};
  s.splits = wgrad_splits(s.blocks(), s.steps, tile.m, tile.n, slots);
  return s;
}

// dX: one block for each tile of each phase and group. Blocks that run together share rows of dy.
struct DgradSchedule {
  int64_t pixel_blocks, column_blocks, groups, phases;

  struct Place {
    int64_t pixel_block, column_block, group, phase;
  };

  WUSKERN_HOST_DEVICE int64_t blocks() const { return pixel_blocks * column_blocks * groups * phases; }
  WUSKERN_HOST_DEVICE Place at(int64_t block) const {
    const int64_t rest = block / column_blocks, other = rest / pixel_blocks;
    return {rest % pixel_blocks, block % column_blocks, other % groups, other / groups};
  }
};

// ---- taps of a strided convolution, along one side -----------------------------------------------------------------

// dX of a convolution with strides: input pixels phase + stride * n meet the same taps. Those taps are first,
// first + step, ...; `before` belong to earlier phases; a tap reaches output pixel n + output(tap).
struct PhaseTaps {
  int first, count, before;
};

struct Side {
  int taps, stride, padding, dilation;

  // Of the input pixels that a tap meets; always the same one.
  WUSKERN_HOST_DEVICE int phase_of(int tap) const {
    const int rest = (tap * dilation - padding) % stride;
    return rest < 0 ? rest + stride : rest;
  }
  WUSKERN_HOST_DEVICE PhaseTaps taps_of(int phase) const {
    PhaseTaps of_phase{taps, 0, 0};
    for (int tap = 0; tap < taps; ++tap) {
      const int met = phase_of(tap);
      of_phase.before += met < phase;
      if (met == phase && of_phase.count++ == 0) of_phase.first = tap;
    }
    return of_phase;
  }
  // From a tap to the next one of its phase.
  WUSKERN_HOST_DEVICE int step() const {
    int a = stride, b = dilation % stride;
    while (b != 0) {
      const int rest = a % b;
      a = b;
      b = rest;
    }
    return stride / a;
  }
  WUSKERN_HOST_DEVICE int output(int tap, int phase) const {
    return (phase + padding - tap * dilation) / stride;  // without a rest
  }
};

// Where a tap stands when taps are ordered by phase: first those of (0, 0), then of (0, 1), ...
WUSKERN_INLINE int tap_order(const Side& h, const Side& w, int i, int j) {
  const int phase_h = h.phase_of(i), phase_w = w.phase_of(j);
  const PhaseTaps of_h = h.taps_of(phase_h), of_w = w.taps_of(phase_w);
  return of_h.before * w.taps + of_h.count * of_w.before + (i - of_h.first) / h.step() * of_w.count +
         (j - of_w.first) / w.step();
}

}  // namespace wuskern
