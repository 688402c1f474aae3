// row_stats on NVIDIA GPUs: the sum of dY over everything but dimension c, and that of |dY| or dY * dY, in one read of
// dY (channel_sums.h).
#include "../torch/row_stats.h"
#include "channel_sums.h"

namespace wuskern {
namespace {

std::tuple<Tensor, Tensor> row_stats(Tensor dy, int64_t dim, Score score) {
  check_dtype(dy, "dy");
  dim = front_dim(dy, dim);
  const Context context(dy);
  auto [bias, scores] = new_row_stats(dy, dim);
  if (dy.numel() == 0) return {torch::stable::zero_(bias), torch::stable::zero_(scores)};

  const Layout layout = foldable(dy, dim);
  for_dtype<__half, __nv_bfloat16>(dy.scalar_type(),
                                   [&, &bias = bias, &scores = scores]<typename T>(std::type_identity<T>) {
                                     using Acc = Accumulator<T>;
                                     const T* const data = const_data_of<T>(dy);
                                     const Targets<T, Acc> out{data_of<T>(bias), data_of<Acc>(scores)};
                                     if (score == Score::l1) {
                                       sum_channels<Score::l1>(context, data, layout, out);
                                     } else {
                                       sum_channels<Score::l2>(context, data, layout, out);
                                     }
                                   });
  return {bias, scores};
}

}  // namespace
}  // namespace wuskern

STABLE_TORCH_LIBRARY_IMPL(wuskern_native, CUDA, m) {
  m.impl("row_stats", &wuskern::boxed_row_stats<&wuskern::row_stats>);
}
