// select_rows on the CPU: the k rows with the largest scores, ascending (csrc/common/rows.h).
#include "../checks.h"
#include "../common/rows.h"
#include "../stable_abi.h"

namespace wuskern {
namespace {

Tensor select_rows(Tensor scores, int64_t k, int64_t block, int64_t groups) {
  check_choice(scores, k, block, groups);
  const int64_t n = scores.numel();
  Tensor rows = new_vector(scores, k, ScalarType::Long);
  if (!scores.is_contiguous()) scores = torch::stable::contiguous(scores);
  const void* const src = scores.const_data_ptr();
  int64_t* const out = static_cast<int64_t*>(rows.mutable_data_ptr());
  for_dtype<Half, BFloat16>(scores.scalar_type(), [&]<typename T>(std::type_identity<T>) {
    select(static_cast<const T*>(src), n, k, block, groups, out);
  });
  return rows;
}

}  // namespace
}  // namespace wuskern

STABLE_TORCH_LIBRARY_IMPL(wuskern_native, CPU, m) { m.impl("select_rows", TORCH_BOX(&wuskern::select_rows)); }
