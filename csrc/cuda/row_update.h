// What rowsparse_sgd_ and rowsparse_adam_ share on NVIDIA GPUs: which thread updates what. A block takes one stretch of
// one chosen row, a thread vectors of 16 bytes of it where everything is aligned, else (and in double) single elements.
#pragma once

#include "../common/reduction.h"
#include "../common/row_update.h"
#include "../torch/row_memory.h"
#include "launch.h"
#include "vectors.h"

namespace wuskern {

constexpr int kVectorsPerThread = 2;

// The chosen rows and their gradient.
template <typename T>
struct ChosenRows {
  const int64_t* rows;
  const T* values;
  RowMemory memory;
};

// Calls body(place in the parameter, place in its state, gradient) for each vector of this thread. vec > 1 wants
// taps == 1.
template <int vec, typename T, typename Body>
__device__ __forceinline__ void for_vectors(const ChosenRows<T>& chosen, int64_t stretches, Body&& body) {
  const int64_t i = blockIdx.x / stretches, stretch = blockIdx.x % stretches;
  const RowMemory& memory = chosen.memory;
  const int64_t start = chosen.rows[i] * memory.elements;
  const int64_t state_start = memory.compact_state ? i * memory.elements : start;
  const T* const values = chosen.values + (memory.compact_values ? i * memory.elements : start);
#pragma unroll
  for (int u = 0; u < kVectorsPerThread; ++u) {
    const int64_t e = ((stretch * kVectorsPerThread + u) * kThreads + threadIdx.x) * vec;
    if (e >= memory.elements) return;
    const int64_t place = memory.taps == 1 ? e : e % memory.channels * memory.taps + e / memory.channels;
    body(start + e, state_start + e, load_vector<vec>(values + place));
  }
}

// Calls launch(vec, stretches of a row, blocks) with vec as a compile-time constant.
template <typename T, typename Launch>
void for_vector_width(const RowMemory& memory, int64_t k, std::initializer_list<const void*> pointers,
                      Launch&& launch) {
  constexpr int most = sizeof(T) == 8 ? 1 : 16 / sizeof(T);  // double takes registers
  const auto with = [&](auto vec) {
    const int64_t stretches = ceil_div(memory.elements, int64_t{vec} * kThreads * kVectorsPerThread);
    launch(vec, stretches, grid_of(k * stretches));
  };
  if (k == 0 || memory.elements == 0) return;
  if (most > 1 && memory.taps == 1 && memory.elements % most == 0 && aligned_to_16(pointers)) {
    with(std::integral_constant<int, most>{});
  } else {
    with(std::integral_constant<int, 1>{});
  }
}

}  // namespace wuskern
