// A tile of a product on tensor cores: out[m, n] = sum over depth of a[m, depth] * b[depth, n], in fp32.
//
// Blocks of kGemmThreads load kTileDepth terms at a time by 16-byte copies that do not wait, several stages ahead. In
// shared memory 64 columns of 16 bits are a row of a panel, 128 bytes, whose 16-byte chunks are swizzled by the row:
// that is the 128-byte swizzle of wgmma, and lets ldmatrix read eight rows without bank conflicts. `b`, and `a` where
// `a_rows`, have a row for each term (memory runs along n or m); else `a` has a row for each m (memory runs along
// depth).
#pragma once

#include <string>

#include "../common/gemm.h"
#include "aligned_copies.h"
#include "mma.h"

namespace wuskern {

constexpr int kRowBytes = 2 * kPanel;
constexpr int kPart = 16;  // terms of one instruction

// Where 8 columns of a row lie in a tile; panels have kTileDepth rows.
__device__ __forceinline__ uint32_t chunk_place(int row, int chunk) {
  return chunk / 8 * (kTileDepth * kRowBytes) + row * kRowBytes + ((chunk % 8) ^ (row % 8)) * 16;
}

// What an operand says of 8 columns: their address, and how many bytes of them are there; zeros where they are not.
struct Chunk {
  const void* from;
  int bytes;
};

// The bytes of the first of 8 columns, or terms, of which `left` are there.
__device__ __forceinline__ int bytes_of(int left) { return max(0, min(left, 8)) * 2; }

// kTileDepth rows of `width` columns. operand(row) gives this thread's chunk of a row: that of column_of<width>().
template <int width>
__device__ __forceinline__ int column_of() {
  return static_cast<int>(threadIdx.x) % (width / 8) * 8;
}

// Rows that the block's threads load together; a thread's own is the same in each swizzle of 8.
__host__ __device__ constexpr int rows_at_once(int width) { return kGemmThreads / (width / 8); }

template <int width>
__device__ __forceinline__ int first_row() {
  static_assert(rows_at_once(width) % 8 == 0);
  return static_cast<int>(threadIdx.x) / (width / 8);
}

template <int width, class Operand>
__device__ __forceinline__ void load_rows(uint32_t tile, int depth, const Operand& operand) {
  const uint32_t to = tile + chunk_place(first_row<width>(), column_of<width>() / 8);
#pragma unroll
  for (int row = 0; row < kTileDepth; row += rows_at_once(width)) {
    const Chunk source = operand(depth + first_row<width>() + row);
    copy_16_async(to + row * kRowBytes, source.from, source.bytes);
  }
}

// kTileM rows of kTileDepth terms. operand(pass, term) gives 8 terms of this thread's row number `pass`: row_of(pass).
constexpr int kRowsOfThread = kTileM * (kTileDepth / 8) / kGemmThreads;

__device__ __forceinline__ int row_of(int pass) {
  return static_cast<int>(threadIdx.x) / (kTileDepth / 8) + pass * (kGemmThreads / (kTileDepth / 8));
}

template <class Operand>
__device__ __forceinline__ void load_columns(uint32_t tile, int depth, const Operand& operand) {
  const int chunk = threadIdx.x % (kTileDepth / 8);
  const auto term = operand.at(depth + chunk * 8);
#pragma unroll
  for (int pass = 0; pass < kRowsOfThread; ++pass) {
    const Chunk source = operand(pass, term);
    copy_16_async(tile + chunk_place(row_of(pass), chunk), source.from, source.bytes);
  }
}

// ---- mma.sync: 4 x 2 warps of 32 x n / 2 results ------------------------------------------------------------------

template <typename T, int n, bool wgmma, int used = n>
struct Multiplier {
  static_assert(used == n);
  static constexpr int kStagesInUse = 1;
  static constexpr int kColumns = n / 16;  // of 8 results, of a warp
  float acc[n / 8][4] = {};

  // `parts` of the stage's terms, kPart each.
  template <bool a_rows>
  __device__ __forceinline__ void add(uint32_t a, uint32_t b, int parts) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, matrix = lane / 8;
    const int m0 = warp % 4 * 32, n0 = warp / 4 * (n / 2);
#pragma unroll
    for (int part = 0; part < kTileDepth / kPart; ++part) {
      if (part >= parts) break;
      uint32_t a_of[2][4];
#pragma unroll
      for (int strip = 0; strip < 2; ++strip) {
        if constexpr (a_rows) {
          const int row = part * kPart + matrix / 2 * 8 + lane % 8, column = m0 + strip * 16 + matrix % 2 * 8;
          load_matrices_transposed(a_of[strip], a + chunk_place(row, column / 8));
        } else {
          const int row = m0 + strip * 16 + matrix % 2 * 8 + lane % 8;
          load_matrices(a_of[strip], a + chunk_place(row, part * 2 + matrix / 2));
        }
      }
#pragma unroll
      for (int column = 0; column < kColumns; column += 2) {
        uint32_t b_of[4];
        const int row = part * kPart + matrix % 2 * 8 + lane % 8;
        load_matrices_transposed(b_of, b + chunk_place(row, n0 / 8 + column + matrix / 2));
#pragma unroll
        for (int strip = 0; strip < 2; ++strip) {
          multiply_add<T>(acc[strip * kColumns + column], a_of[strip], b_of[0], b_of[1]);
          multiply_add<T>(acc[strip * kColumns + column + 1], a_of[strip], b_of[2], b_of[3]);
        }
      }
    }
  }

  __device__ __forceinline__ void before_barrier() {}
  __device__ __forceinline__ void after_loads() {}
  __device__ __forceinline__ void finish() {}

  // Calls use(m, n, v0, v1) for neighbours along n.
  template <class Use>
  __device__ __forceinline__ void for_results(Use&& use) const {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int m0 = warp % 4 * 32 + lane / 4, n0 = warp / 4 * (n / 2) + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < n / 8; ++i) {
      const int m = m0 + i / kColumns * 16, column = n0 + i % kColumns * 8;
      use(m, column, acc[i][0], acc[i][1]);
      use(m + 8, column, acc[i][2], acc[i][3]);
    }
  }
};

// ---- wgmma: two warpgroups of 64 x n results ----------------------------------------------------------------------

// Where two blocks share a processor, one multiplies while the other waits at its barrier. A block that is alone lets
// its warpgroups multiply across the barrier, and keeps one stage more for that.
// Of the tile's columns, `used` are multiplied.
template <typename T, int n, int used>
struct Multiplier<T, n, true, used> {
  static constexpr bool kAlone = n == kWidestTile;
  static constexpr int kStagesInUse = kAlone ? 2 : 1;
  float acc[used / 8][4] = {};

  template <bool a_rows>
  __device__ __forceinline__ void add(uint32_t a, uint32_t b, int parts) {
    constexpr uint32_t panel = kTileDepth * kRowBytes, eight = 8 * kRowBytes;  // rows of 128 bytes
    const uint32_t half = threadIdx.x / 128 * panel;  // 64 columns of a, or 64 rows of it: the same number of bytes
    const uint64_t a_tile = tile_descriptor(a + half, panel, eight), b_tile = tile_descriptor(b, panel, eight);
    const auto multiply = [&](int part) {
      const uint32_t a_part = part * (a_rows ? kPart * kRowBytes : kPart * 2);
      multiply_add_async<T, used, a_rows>(acc, further_in_tile(a_tile, a_part),
                                          further_in_tile(b_tile, part * kPart * kRowBytes));
    };
    if (parts == kTileDepth / kPart) {
      fence_wgmma();
#pragma unroll
      for (int part = 0; part < kTileDepth / kPart; ++part) multiply(part);
      commit_wgmma();
      return;
    }
#pragma unroll 1
    for (int part = 0; part < parts; ++part) {  // of the last stage
      fence_wgmma();
      multiply(part);
      commit_wgmma();
    }
  }

  __device__ __forceinline__ void before_barrier() { show_copies_to_wgmma(); }
  __device__ __forceinline__ void after_loads() { wait_for_wgmma<kAlone ? 1 : 0>(); }
  __device__ __forceinline__ void finish() { wait_for_wgmma<0>(); }

  template <class Use>
  __device__ __forceinline__ void for_results(Use&& use) const {
    const int lane = threadIdx.x % 32, m = threadIdx.x / 32 * 16 + lane / 4;
#pragma unroll
    for (int i = 0; i < used / 8; ++i) {
      use(m, i * 8 + lane % 4 * 2, acc[i][0], acc[i][1]);
      use(m + 8, i * 8 + lane % 4 * 2, acc[i][2], acc[i][3]);
    }
  }
};

// ---- the loop -----------------------------------------------------------------------------------------------------

// load_a(tile, depth) and load_b(tile, depth) start the copies of a stage.
template <typename T, int n, bool a_rows, bool wgmma, int used, class LoadA, class LoadB>
__device__ __forceinline__ void sum_products(Multiplier<T, n, wgmma, used>& multiplier, int begin, int end,
                                             LoadA&& load_a, LoadB&& load_b) {
  constexpr int stages = tile_stages(n), ahead = stages - Multiplier<T, n, wgmma, used>::kStagesInUse;
  const uint32_t shared = shared_address(tile_memory());
  const auto load = [&](int stage, int depth) {
    if (depth < end) {
      const uint32_t tile = shared + stage * tile_stage_bytes(n);
      load_a(tile, depth);
      load_b(tile + kTileM * kRowBytes, depth);
    }
    commit_copies();  // empty ones too: the loop counts groups
  };
#pragma unroll
  for (int stage = 0; stage < ahead; ++stage) load(stage, begin + stage * kTileDepth);
  int stage = 0, next = ahead;
  for (int depth = begin; depth < end; depth += kTileDepth) {
    wait_for_copies<ahead - 1>();
    multiplier.before_barrier();
    __syncthreads();  // this stage has arrived for all; nobody uses any more the one that is loaded now
    const uint32_t tile = shared + stage * tile_stage_bytes(n);
    const int left = end - depth, parts = left < kTileDepth ? (left + kPart - 1) / kPart : kTileDepth / kPart;
    if constexpr (!wgmma) load(next, depth + ahead * kTileDepth);
    multiplier.template add<a_rows>(tile, tile + kTileM * kRowBytes, parts);
    if constexpr (wgmma) load(next, depth + ahead * kTileDepth);
    multiplier.after_loads();
    stage = stage + 1 == stages ? 0 : stage + 1;
    next = next + 1 == stages ? 0 : next + 1;
  }
  multiplier.finish();
}

// ---- which products take them -------------------------------------------------------------------------------------

// Whether this library has code for Hopper with its own instructions. "9.0" and PTX have not.
#ifdef WUSKERN_CUDA_ARCHITECTURES
inline bool built_for_hopper() { return std::string(WUSKERN_CUDA_ARCHITECTURES).find("9.0a") != std::string::npos; }
#else
inline bool built_for_hopper() { return true; }
#endif

inline Gpu gpu_of(const Context& context) {
  const int capability = context.compute_capability();
  return {capability, context.processors(), capability == 90 && built_for_hopper()};
}

// Calls body(std::integral_constant<int, n>) for a width n of tiles, which is one of `widths`.
template <int... widths, class Body>
void for_tile_width(int n, Body&& body) {
  ((n == widths ? body(std::integral_constant<int, widths>{}) : void()), ...);
}

// 16-bit formats, where 31 bits count tokens (pixels), features and terms; elements may be more.
inline bool takes_tensor_cores(ScalarType dtype, const RowSparseConv2d& conv) {
  constexpr int64_t most =
      (int64_t{1} << 31) - kTileM - 4 * kTileDepth;  // a tile and its loads may start before the end
  const bool is_half = dtype == ScalarType::Half || dtype == ScalarType::BFloat16;
  const int64_t across = std::max(conv.features(), conv.taps() * in_eights(conv.k));
  return is_half && std::max({across, conv.dy.count(), conv.input.count()}) < most;
}

}  // namespace wuskern
