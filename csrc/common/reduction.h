// Schedules of the two-stage sums. A schedule depends on the shape and on the machine, never on who runs which part
// when, so a sum has the same bits every time. Nothing here touches data: all of it is tested on the CPU.
#pragma once

#include <cstdint>

#include "inline.h"

namespace wuskern {

WUSKERN_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// [0, total) in pieces of `size`; the last one may be shorter.
struct Chunks {
  int64_t total, size;

  WUSKERN_HOST_DEVICE int64_t count() const { return ceil_div(total, size); }
  WUSKERN_HOST_DEVICE int64_t begin(int64_t i) const { return i * size; }
  WUSKERN_HOST_DEVICE int64_t end(int64_t i) const { return begin(i) + size < total ? begin(i) + size : total; }
};

// lane[0] becomes the sum of lane[0 .. width): neighbours half the width apart are added, width a power of two.
template <int width, typename Acc>
WUSKERN_INLINE Acc fold_tree(Acc (&lane)[width]) {
  static_assert((width & (width - 1)) == 0, "width is a power of two");
  for (int half = width / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
  }
  return lane[0];
}

// Walks the vectors of `outer` planes with `vectors` vectors each as one sequence, `step` apart, without dividing.
struct PlaneWalk {
  int64_t outer, vector;            // where it stands
  int64_t step_outer, step_vector;  // what one step adds
  int64_t vectors;

  WUSKERN_HOST_DEVICE PlaneWalk(int64_t vectors_per_plane, int64_t start, int64_t step)
      : outer(start / vectors_per_plane),
        vector(start % vectors_per_plane),
        step_outer(step / vectors_per_plane),
        step_vector(step % vectors_per_plane),
        vectors(vectors_per_plane) {}

  WUSKERN_HOST_DEVICE void advance() {
    outer += step_outer;
    vector += step_vector;
    if (vector >= vectors) {
      vector -= vectors;
      ++outer;
    }
  }
};

// The GPU's blocks have kLanes x kWarps threads; a thread keeps kUnroll loads of up to 16 bytes in flight.
constexpr int kLanes = 32;
constexpr int kWarps = 8;
constexpr int kThreads = kLanes * kWarps;
constexpr int kUnroll = 4;
constexpr int64_t kBlocksPerProcessor = 8;  // four of them at a time have 4 x 256 x 4 x 16 bytes = 64 KiB in flight
constexpr int64_t kMaxChunks = 65535;       // gridDim.y
constexpr int64_t kMinRows = 64;            // per block; so few are not worth a further pass
constexpr int64_t kMinOuterForRows = 16;    // fewer images than this would leave a row of partial sums each

// Chunks of `total` for a second grid dimension when the first has `blocks`: enough to fill the processors, none
// with less than `least` to do.
inline Chunks fill_grid(int64_t total, int64_t least, int64_t blocks, int64_t processors) {
  int64_t chunks = ceil_div(processors * kBlocksPerProcessor, blocks);
  if (chunks > total / least) chunks = total / least;
  if (chunks > kMaxChunks) chunks = kMaxChunks;
  if (chunks < 1) chunks = 1;
  return {total, ceil_div(total, chunks)};
}

// sum_rows: a block takes kLanes * vec columns and one chunk of the rows.
struct RowsGrid {
  int64_t column_blocks;
  Chunks rows;
};

inline RowsGrid rows_grid(int64_t rows, int64_t columns, int vec, int64_t processors) {
  const int64_t column_blocks = ceil_div(columns, int64_t{kLanes} * vec);
  return {column_blocks, fill_grid(rows, kMinRows, column_blocks, processors)};
}

// How many rows sum_rows reads as one: of few columns without gaps between them, as many as a block has lanes for.
inline int rows_repeat(int64_t rows, int64_t columns, int64_t stride, int vec) {
  const int64_t fit = int64_t{kLanes} * vec / columns, repeat = fit < rows ? fit : rows;
  return stride == columns && columns % vec == 0 && repeat > 1 ? static_cast<int>(repeat) : 1;
}

// sum_planes: a block takes one channel and one chunk of its outer * inner / vec vectors.
inline Chunks planes_grid(int64_t outer, int64_t channels, int64_t inner, int vec, int64_t processors) {
  return fill_grid(outer * (inner / vec), int64_t{kThreads} * kUnroll, channels, processors);
}

}  // namespace wuskern
