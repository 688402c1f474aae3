// bias_grad on NVIDIA GPUs: db[c] = sum of dY over everything but dimension c, in one read of dY (channel_sums.h).
#include "../torch/checks.h"
#include "channel_sums.h"

namespace wuskern {
namespace {

Tensor bias_grad(Tensor dy, int64_t dim) {
  check_dtype(dy, "dy");
  dim = front_dim(dy, dim);
  const Context context(dy);
  Tensor out = new_tensor(dy, {dy.size(dim)});
  if (dy.numel() == 0) return torch::stable::zero_(out);

  const Layout layout = foldable(dy, dim);
  for_dtype<__half, __nv_bfloat16>(dy.scalar_type(), [&]<typename T>(std::type_identity<T>) {
    const Targets<T, Accumulator<T>> targets{data_of<T>(out), nullptr};
    sum_channels<Score::none>(context, const_data_of<T>(dy), layout, targets);
  });
  return out;
}

}  // namespace
}  // namespace wuskern

STABLE_TORCH_LIBRARY_IMPL(wuskern_native, CUDA, m) { m.impl("bias_grad", TORCH_BOX(&wuskern::bias_grad)); }
