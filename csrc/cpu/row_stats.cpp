// row_stats on the CPU: the sum of dY over everything but dimension c, and that of |dY| or dY * dY, in one read of dY
// (channel_sums.h).
#include "../torch/row_stats.h"

#include "channel_sums.h"

namespace wuskern {
namespace {

std::tuple<Tensor, Tensor> row_stats(Tensor dy, int64_t dim, Score score) {
  check_dtype(dy, "dy");
  dim = front_dim(dy, dim);
  auto [bias, scores] = new_row_stats(dy, dim);
  if (dy.numel() == 0) return {torch::stable::zero_(bias), torch::stable::zero_(scores)};

  const Layout layout = foldable(dy, dim);
  for_dtype<Half, BFloat16>(dy.scalar_type(), [&, &bias = bias, &scores = scores]<typename T>(std::type_identity<T>) {
    using ScoreSum = std::conditional_t<std::is_same_v<T, double>, double, float>;
    const Targets<T, ScoreSum> out{score, data_of<T>(bias), data_of<ScoreSum>(scores)};
    sum_channels(const_data_of<T>(dy), layout, out);
  });
  return {bias, scores};
}

}  // namespace
}  // namespace wuskern

STABLE_TORCH_LIBRARY_IMPL(wuskern_native, CPU, m) {
  m.impl("row_stats", &wuskern::boxed_row_stats<&wuskern::row_stats>);
}
