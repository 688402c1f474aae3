// bias_grad on the CPU: db[c] = sum of dY over everything but dimension c, in one read of dY (channel_sums.h).
#include "../torch/checks.h"
#include "channel_sums.h"

namespace wuskern {
namespace {

Tensor bias_grad(Tensor dy, int64_t dim) {
  check_dtype(dy, "dy");
  dim = front_dim(dy, dim);
  Tensor out = new_tensor(dy, {dy.size(dim)});
  if (dy.numel() == 0) return torch::stable::zero_(out);

  const Layout layout = foldable(dy, dim);
  for_dtype<Half, BFloat16>(dy.scalar_type(), [&]<typename T>(std::type_identity<T>) {
    sum_channels(const_data_of<T>(dy), layout, Targets<T, double>{Score::none, data_of<T>(out), nullptr});
  });
  return out;
}

}  // namespace
}  // namespace wuskern

STABLE_TORCH_LIBRARY_IMPL(wuskern_native, CPU, m) { m.impl("bias_grad", TORCH_BOX(&wuskern::bias_grad)); }
