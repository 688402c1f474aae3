// scale_channels on NVIDIA GPUs: the twin of csrc/cpu/scale_channels.cpp. A thread takes one vector of 16 bytes: of one
// channel, or of neighbouring ones; single elements where neither fits.
#include <climits>

#include "../torch/bits.h"
#include "launch.h"
#include "vectors.h"

namespace wuskern {
namespace {

// `run`: vectors of one channel that follow each other, where they are not of several channels; `period`: vectors until
// the same channels come again.
template <typename T, int vec, bool several, typename Index>
__global__ void __launch_bounds__(kThreads) scale(const T* __restrict__ dy, const Accumulator<T>* __restrict__ scales,
                                                  Index run, Index period, Index vectors, T* __restrict__ out) {
  using Acc = Accumulator<T>;
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= vectors) return;
  const Index within = static_cast<Index>(i) % period, channel = several ? within * vec : within / run;
  auto vector = load_constant_vector<vec>(dy + i * vec);
#pragma unroll
  for (int v = 0; v < vec; ++v) {
    vector.at[v] = static_cast<T>(static_cast<Acc>(vector.at[v]) * scales[channel + (several ? v : 0)]);
  }
  store_vector<vec>(out + i * vec, vector);
}

template <typename T, int vec, bool several>
void launch_scale(const Context& context, const Layout& layout, const T* dy, const Accumulator<T>* scales, T* out) {
  const int64_t run = several ? 1 : layout.inner / vec,
                period = several ? layout.channels / vec : layout.channels * run;
  const int64_t vectors = layout.outer * period;
  const unsigned blocks = grid_of(ceil_div(vectors, kThreads));
  if (vectors <= INT_MAX) {  // divisions of 32 bits take half the time
    launch(context, scale<T, vec, several, int>, blocks, kThreads, 0, dy, scales, run, period, vectors, out);
  } else {
    launch(context, scale<T, vec, several, int64_t>, blocks, kThreads, 0, dy, scales, run, period, vectors, out);
  }
}

Tensor scale_channels(Tensor dy, Tensor scale, int64_t dim) {
  check_scale(dy, scale, dim);
  dim = front_dim(dy, dim);
  const Context context(dy);
  make_filled(dy);
  Tensor out = new_like(dy);
  if (dy.numel() == 0) return out;

  const Layout layout = channels_of(dy, dim);
  for_dtype<__half, __nv_bfloat16>(dy.scalar_type(), [&]<typename T>(std::type_identity<T>) {
    const T* const from = const_data_of<T>(dy);
    const auto* const scales = const_data_of<Accumulator<T>>(scale);
    T* const to = data_of<T>(out);
    constexpr int vec = kVec<T>;
    if (layout.inner % vec == 0 && aligned_to_16({from, to})) {
      launch_scale<T, vec, false>(context, layout, from, scales, to);
    } else if (layout.inner == 1 && layout.channels % vec == 0 && aligned_to_16({from, to})) {
      launch_scale<T, vec, true>(context, layout, from, scales, to);
    } else {
      launch_scale<T, 1, false>(context, layout, from, scales, to);
    }
  });
  return out;
}

}  // namespace
}  // namespace wuskern

STABLE_TORCH_LIBRARY_IMPL(wuskern_native, CUDA, m) { m.impl("scale_channels", TORCH_BOX(&wuskern::scale_channels)); }
