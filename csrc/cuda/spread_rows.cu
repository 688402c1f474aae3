// spread_rows(target, rows, values) on NVIDIA GPUs: target is zero but for target[rows] = values, in one launch that
// writes each element once. The dense form of a row-sparse gradient; wuskern/delivery/dense_grad.py asks for it.
#include "../common/reduction.h"
#include "../torch/row_memory.h"
#include "launch.h"
#include "vectors.h"

namespace wuskern {
namespace {

constexpr int kVectorsOfThread = 4;

// A block takes one stretch of one row of the target, and looks the row up among the chosen ones.
template <typename T, int vec>
__global__ void __launch_bounds__(kThreads)
    spread(const int64_t* __restrict__ rows, int64_t k, const T* __restrict__ values, RowMemory memory,
           int64_t stretches, T* __restrict__ target) {
  const int64_t row = blockIdx.x / stretches, stretch = blockIdx.x % stretches;
  __shared__ int64_t place;
  if (threadIdx.x == 0) place = -1;
  __syncthreads();
  for (int64_t i = threadIdx.x; i < k; i += kThreads) {
    if (rows[i] == row) place = i;
  }
  __syncthreads();
  const int64_t from = place * memory.elements;
#pragma unroll
  for (int u = 0; u < kVectorsOfThread; ++u) {
    const int64_t e = ((stretch * kVectorsOfThread + u) * kThreads + threadIdx.x) * vec;
    if (e >= memory.elements) return;
    Vector<T, vec> vector{};
    if (place >= 0) {
      const int64_t value = memory.taps == 1 ? e : e % memory.channels * memory.taps + e / memory.channels;
      vector = load_constant_vector<vec>(values + from + value);
    }
    store_vector<vec>(target + row * memory.elements + e, vector);
  }
}

template <typename T, int vec>
void launch_spread(const Context& context, const Tensor& rows, const Tensor& values, const RowMemory& memory,
                   Tensor& target) {
  const int64_t stretches = ceil_div(memory.elements, int64_t{vec} * kThreads * kVectorsOfThread);
  launch(context, spread<T, vec>, grid_of(target.size(0) * stretches), kThreads, 0, indices_of(rows), rows.numel(),
         const_data_of<T>(values), memory, stretches, data_of<T>(target));
}

void spread_rows(Tensor target, Tensor rows, Tensor values) {
  check_rows_of(target, "target");
  check_index(rows, target, target.size(0));
  std::vector<int64_t> sizes = sizes_of(target);
  sizes[0] = rows.numel();
  check_like(values, "values", target, "target");
  check_sizes(values, "values", sizes);
  check_contiguous(values, "values");
  check_apart(rows, "rows", target, "target");
  check_apart(values, "values", target, "target");
  const Context context(target);
  make_contiguous(rows);
  const RowMemory memory(target);
  if (target.numel() == 0) return;
  for_dtype<uint16_t, uint16_t>(target.scalar_type(), [&]<typename T>(std::type_identity<T>) {
    if (memory.taps == 1 && aligned(data_of<T>(target), {memory.elements}) &&
        aligned_to_16({const_data_of<T>(values)})) {
      launch_spread<T, kVec<T>>(context, rows, values, memory, target);
    } else {
      launch_spread<T, 1>(context, rows, values, memory, target);
    }
  });
}

}  // namespace
}  // namespace wuskern

STABLE_TORCH_LIBRARY_IMPL(wuskern_native, CUDA, m) { m.impl("spread_rows", TORCH_BOX(&wuskern::spread_rows)); }
