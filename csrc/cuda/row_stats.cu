// row_stats on NVIDIA GPUs: the sum of dY over everything but dimension c, and that of |dY| or dY * dY, in one read of
// dY (channel_sums.h).
#include "../checks.h"
#include "../row_stats.h"
#include "channel_sums.h"

namespace wuskern {
namespace {

std::tuple<Tensor, Tensor> row_stats(Tensor dy, int64_t dim, Score score) {
  check_dtype(dy, "dy");
  dim = front_dim(dy, dim);
  const torch::stable::accelerator::DeviceGuard guard(dy.get_device_index());
  auto [bias, scores] = new_row_stats(dy, dim);
  if (dy.numel() == 0) return {torch::stable::zero_(bias), torch::stable::zero_(scores)};

  const Layout layout = foldable(dy, dim);
  const Context context = context_of(dy);
  const void* const src = dy.const_data_ptr();
  void* const sums_out = bias.mutable_data_ptr();
  void* const scores_out = scores.mutable_data_ptr();
  for_dtype<__half, __nv_bfloat16>(dy.scalar_type(), [&]<typename T>(std::type_identity<T>) {
    using Acc = Accumulator<T>;
    const T* const data = static_cast<const T*>(src);
    const Targets<T, Acc> out{static_cast<T*>(sums_out), static_cast<Acc*>(scores_out)};
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
