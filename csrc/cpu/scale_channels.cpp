// scale_channels on the CPU: dY times a number for each channel.
#include <algorithm>

#include "../torch/bits.h"
#include "bits_kernels.h"

namespace wuskern {
namespace {

constexpr int64_t kTaskElements = 32768;  // fewer are not worth another thread

template <typename T>
void scale_runs(const Layout& layout, const WideOf<T>* scale, const T* dy, T* out) {
  const BitsKernels<T> kernels = bits_kernels<T>();
  const bool rows = layout.inner == 1;  // the channels are neighbours
  const int64_t run = rows ? layout.channels : layout.inner;
  const int64_t runs = layout.outer * layout.channels * layout.inner / run;
  torch::stable::parallel_for(0, runs, std::max(int64_t{1}, kTaskElements / run), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (rows) {
        kernels.scale_each(scale, dy + i * run, run, out + i * run);
      } else {
        kernels.scale_all(scale[i % layout.channels], dy + i * run, run, out + i * run);
      }
    }
  });
}

Tensor scale_channels(Tensor dy, Tensor scale, int64_t dim) {
  check_scale(dy, scale, dim);
  dim = front_dim(dy, dim);
  make_filled(dy);
  Tensor out = new_like(dy);
  if (dy.numel() == 0) return out;

  const Layout layout = channels_of(dy, dim);
  for_dtype<Half, BFloat16>(dy.scalar_type(), [&]<typename T>(std::type_identity<T>) {
    scale_runs<T>(layout, const_data_of<WideOf<T>>(scale), const_data_of<T>(dy), data_of<T>(out));
  });
  return out;
}

}  // namespace
}  // namespace wuskern

STABLE_TORCH_LIBRARY_IMPL(wuskern_native, CPU, m) { m.impl("scale_channels", TORCH_BOX(&wuskern::scale_channels)); }
