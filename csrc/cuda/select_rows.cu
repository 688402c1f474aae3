// select_rows on NVIDIA GPUs: the k rows with the largest scores, ascending, in one launch: each group of rows has one
// block of threads (selection.h).
#include "../torch/checks.h"
#include "selection.h"

namespace wuskern {
namespace {

// Of a block; half as many where keys are read again, for the registers that hold several loads on their way.
template <bool kept>
constexpr int kMostThreads = kept ? 1024 : 512;

// rows[groups, wanted, block] of scores[groups, n, block]
template <typename T, bool kept>
__global__ void __launch_bounds__(kMostThreads<kept>, 1)
    select_rows_of_group(const T* __restrict__ scores, int64_t n, int64_t wanted, int64_t block, int64_t* rows) {
  __shared__ unsigned counts[kBuckets];
  const int64_t first_row = blockIdx.x * n * block;
  select_of_group<kept>(scores + first_row, n, wanted, block, first_row, counts, dynamic_shared(),
                        rows + blockIdx.x * wanted * block);
}

// ---- op -----------------------------------------------------------------------------------------------------------

// A power of two, so that a thread has about four keys.
int threads_for(int64_t n, int most) {
  int threads = 64;
  while (threads < most && threads * 4 < n) threads *= 2;
  return threads;
}

}  // namespace

Tensor select_rows(Tensor scores, int64_t k, int64_t block, int64_t groups) {
  check_choice(scores, k, block, groups);
  const Context context(scores);
  Tensor rows = new_tensor(scores, {k}, ScalarType::Long);
  make_contiguous(scores);
  const int64_t n = scores.numel() / (block * groups), wanted = k / (block * groups);
  for_dtype<__half, __nv_bfloat16>(scores.scalar_type(), [&]<typename T>(std::type_identity<T>) {
    const int64_t bytes = n * kKeyBytes<T>;
    const auto run = [&]<bool kept>(std::bool_constant<kept>) {
      launch(context, select_rows_of_group<T, kept>, groups, threads_for(n, kMostThreads<kept>), kept ? bytes : 0,
             const_data_of<T>(scores), n, wanted, block, data_of<int64_t>(rows));
    };
    bytes <= kKeptBytes ? run(std::true_type{}) : run(std::false_type{});
  });
  return rows;
}

}  // namespace wuskern

STABLE_TORCH_LIBRARY_IMPL(wuskern_native, CUDA, m) { m.impl("select_rows", TORCH_BOX(&wuskern::select_rows)); }
