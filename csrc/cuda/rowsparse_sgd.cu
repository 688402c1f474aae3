// rowsparse_sgd_ on NVIDIA GPUs: the twin of csrc/cpu/rowsparse_sgd.cpp. One pass over the chosen rows.
#include "row_update.h"

namespace wuskern {
namespace {

template <typename T, int vec, bool has_buffer>
__global__ void __launch_bounds__(kThreads, 4)
    update_sgd(SgdNumbers<Accumulator<T>> numbers, T* __restrict__ param, T* __restrict__ buffer, ChosenRows<T> chosen,
               int64_t stretches) {
  using Acc = Accumulator<T>;
  for_vectors<vec>(chosen, stretches, [&](int64_t place, int64_t kept, const Vector<T, vec>& gradient) {
    auto p = load_vector<vec>(param + place), b = p;
    if constexpr (has_buffer) b = load_vector<vec>(buffer + kept);
#pragma unroll
    for (int v = 0; v < vec; ++v) {
      Acc x = static_cast<Acc>(p.at[v]), m = static_cast<Acc>(b.at[v]);
      sgd<has_buffer>(numbers, x, m, static_cast<Acc>(gradient.at[v]));
      p.at[v] = static_cast<T>(x);
      b.at[v] = static_cast<T>(m);
    }
    store_vector<vec>(param + place, p);
    if constexpr (has_buffer) store_vector<vec>(buffer + kept, b);
  });
}

void rowsparse_sgd_(Tensor param, std::optional<Tensor> buffer, Tensor rows, Tensor values, double lr, double momentum,
                    double dampening, double weight_decay, bool nesterov, bool maximize) {
  check_defined(param, "param");
  const Context context(param);
  const RowMemory memory = checked_row_memory(param, {pointer(buffer)}, rows, values);
  for_dtype<__half, __nv_bfloat16>(param.scalar_type(), [&]<typename T>(std::type_identity<T>) {
    const auto numbers = sgd_numbers<Accumulator<T>>(lr, momentum, dampening, weight_decay, nesterov, maximize);
    T *const p = data_of<T>(param), *const b = data_of<T>(buffer);
    const ChosenRows<T> chosen{indices_of(rows), const_data_of<T>(values), memory};
    for_vector_width<T>(memory, rows.numel(), {p, b, chosen.values}, [&](auto vec, int64_t stretches, unsigned blocks) {
      const auto update = b ? update_sgd<T, vec, true> : update_sgd<T, vec, false>;
      launch(context, update, blocks, kThreads, 0, numbers, p, b, chosen, stretches);
    });
  });
}

}  // namespace
}  // namespace wuskern

STABLE_TORCH_LIBRARY_IMPL(wuskern_native, CUDA, m) { m.impl("rowsparse_sgd_", TORCH_BOX(&wuskern::rowsparse_sgd_)); }
