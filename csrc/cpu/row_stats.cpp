// row_stats on the CPU: the sum of dY over everything but dimension c, and that of |dY| or dY * dY, in one read of dY
// (channel_sums.h).
#include "../row_stats.h"

#include "../checks.h"
#include "channel_sums.h"

namespace wuskern {
namespace {

std::tuple<Tensor, Tensor> row_stats(Tensor dy, int64_t dim, Score score) {
  check_dtype(dy, "dy");
  dim = front_dim(dy, dim);
  auto [bias, scores] = new_row_stats(dy, dim);
  if (dy.numel() == 0) return {torch::stable::zero_(bias), torch::stable::zero_(scores)};

  const Layout layout = foldable(dy, dim);
  const void* const src = dy.const_data_ptr();
  void* const sums_out = bias.mutable_data_ptr();
  void* const scores_out = scores.mutable_data_ptr();
  for_dtype<Half, BFloat16>(dy.scalar_type(), [&]<typename T>(std::type_identity<T>) {
    using ScoreSum = std::conditional_t<std::is_same_v<T, double>, double, float>;
    const Targets<T, ScoreSum> out{score, static_cast<T*>(sums_out), static_cast<ScoreSum*>(scores_out)};
    sum_channels(static_cast<const T*>(src), layout, out);
  });
  return {bias, scores};
}

}  // namespace
}  // namespace wuskern

STABLE_TORCH_LIBRARY_IMPL(wuskern_native, CPU, m) {
  m.impl("row_stats", &wuskern::boxed_row_stats<&wuskern::row_stats>);
}
