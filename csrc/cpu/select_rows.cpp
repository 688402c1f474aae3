// select_rows on the CPU: the k rows with the largest scores, ascending (csrc/common/rows.h).
#include "../common/rows.h"
#include "../torch/checks.h"

namespace wuskern {
namespace {

Tensor select_rows(Tensor scores, int64_t k, int64_t block, int64_t groups) {
  check_choice(scores, k, block, groups);
  const int64_t n = scores.numel();
  Tensor rows = new_tensor(scores, {k}, ScalarType::Long);
  make_contiguous(scores);
  for_dtype<Half, BFloat16>(scores.scalar_type(), [&]<typename T>(std::type_identity<T>) {
    select(const_data_of<T>(scores), n, k, block, groups, data_of<int64_t>(rows));
  });
  return rows;
}

}  // namespace
}  // namespace wuskern

STABLE_TORCH_LIBRARY_IMPL(wuskern_native, CPU, m) { m.impl("select_rows", TORCH_BOX(&wuskern::select_rows)); }
