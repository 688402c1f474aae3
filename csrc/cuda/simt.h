// A tile of a product without tensor cores: float32 exactly, float64, and what those cannot index.
//
// A block of 256 threads computes 64 x 64 results, 16 terms at a time, a thread 4 x 4 of them. The terms of a stage are
// added up before they join the sum, which keeps long sums of float32 as exact as those of a library.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace wuskern {

constexpr int kSimtTile = 64, kSimtDepth = 16, kSimtThreads = 256;
constexpr int kSimtLoads = kSimtTile * kSimtDepth / kSimtThreads;  // of a thread for a stage and operand
constexpr int kSimtStep = kSimtThreads / kSimtTile;                // terms from one of its loads to the next

template <typename Acc>
struct SimtStage {
  Acc a[kSimtDepth][kSimtTile], b[kSimtDepth][kSimtTile];
};

// acc[m, n] += sum of a[m] b[n] over `stages` stages. load(a, b) gives this thread's next elements of both operands:
// column threadIdx.x % kSimtTile, terms threadIdx.x / kSimtTile and every kSimtStep-th after it.
template <typename Acc, class Load>
__device__ __forceinline__ void simt_sum(Acc (&acc)[4][4], int64_t stages, Load&& load) {
  __shared__ SimtStage<Acc> stage;
  const int column = threadIdx.x % kSimtTile, term = threadIdx.x / kSimtTile;
  const int m = threadIdx.x / 16 * 4, n = threadIdx.x % 16 * 4;
  Acc a[kSimtLoads], b[kSimtLoads];
  for (int64_t s = 0; s <= stages; ++s) {  // loads of a stage are on their way while the one before is multiplied
    if (s < stages) load(a, b);
    if (s > 0) {
      Acc part[4][4] = {};
#pragma unroll
      for (int d = 0; d < kSimtDepth; ++d) {
        Acc x[4], y[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          x[i] = stage.a[d][m + i];
          y[i] = stage.b[d][n + i];
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
#pragma unroll
          for (int j = 0; j < 4; ++j) part[i][j] += x[i] * y[j];
        }
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) acc[i][j] += part[i][j];
      }
    }
    if (s == stages) return;
    __syncthreads();  // all have used the stage before
#pragma unroll
    for (int i = 0; i < kSimtLoads; ++i) {
      stage.a[term + i * kSimtStep][column] = a[i];
      stage.b[term + i * kSimtStep][column] = b[i];
    }
    __syncthreads();
  }
}

}  // namespace wuskern
