// rowsparse_adam_ on NVIDIA GPUs: the twin of csrc/cpu/rowsparse_adam.cpp. One pass over the chosen rows. Where the
// step count lives on the GPU, a kernel of one thread counts and makes the numbers of the step, and nobody waits.
#include "row_update.h"

namespace wuskern {
namespace {

template <typename Step, typename Acc>
__global__ void count_step(Step* step, AdamArguments arguments, AdamNumbers<Acc>* numbers) {
  *numbers = adam_numbers<Acc>(arguments, *step += 1);
}

struct Root {
  __device__ __forceinline__ float operator()(float x) const { return sqrtf(x); }
  __device__ __forceinline__ double operator()(double x) const { return sqrt(x); }
};

template <typename T, int vec, bool amsgrad>
__global__ void __launch_bounds__(kThreads, 4)
    update_adam(AdamNumbers<Accumulator<T>> given, const AdamNumbers<Accumulator<T>>* counted, T* __restrict__ param,
                T* __restrict__ first, T* __restrict__ second, T* __restrict__ most, ChosenRows<T> chosen,
                int64_t stretches) {
  using Acc = Accumulator<T>;
  const AdamNumbers<Acc> numbers = counted ? *counted : given;
  for_vectors<vec>(chosen, stretches, [&](int64_t place, int64_t kept, const Vector<T, vec>& gradient) {
    auto p = load_vector<vec>(param + place), m = load_vector<vec>(first + kept), v = load_vector<vec>(second + kept),
         w = v;
    if constexpr (amsgrad) w = load_vector<vec>(most + kept);
#pragma unroll
    for (int i = 0; i < vec; ++i) {
      Acc x = static_cast<Acc>(p.at[i]), y = static_cast<Acc>(m.at[i]), z = static_cast<Acc>(v.at[i]),
          top = static_cast<Acc>(w.at[i]);
      adam<amsgrad>(numbers, x, y, z, top, static_cast<Acc>(gradient.at[i]), Root());
      p.at[i] = static_cast<T>(x);
      m.at[i] = static_cast<T>(y);
      v.at[i] = static_cast<T>(z);
      w.at[i] = static_cast<T>(top);
    }
    store_vector<vec>(param + place, p);
    store_vector<vec>(first + kept, m);
    store_vector<vec>(second + kept, v);
    if constexpr (amsgrad) store_vector<vec>(most + kept, w);
  });
}

// The numbers of the step: of a count on the CPU by value, of one on the GPU in its memory.
template <typename Acc>
struct Counted {
  AdamNumbers<Acc> given;
  Tensor owner;
  AdamNumbers<Acc>* on_gpu = nullptr;

  Counted(const Context& context, Tensor& step, const AdamArguments& arguments)
      : owner(new_tensor(step, {step.is_cpu() ? 0 : ceil_div(sizeof(given), sizeof(double))}, ScalarType::Double)) {
    const bool wide = step.scalar_type() == ScalarType::Double;
    if (step.is_cpu()) {
      given = adam_numbers<Acc>(arguments, wide ? *data_of<double>(step) += 1 : *data_of<float>(step) += 1);
      return;
    }
    on_gpu = data_of<AdamNumbers<Acc>>(owner);
    if (wide) {
      launch(context, count_step<double, Acc>, 1, 1, 0, data_of<double>(step), arguments, on_gpu);
    } else {
      launch(context, count_step<float, Acc>, 1, 1, 0, data_of<float>(step), arguments, on_gpu);
    }
  }
};

void rowsparse_adam_(Tensor param, Tensor first, Tensor second, std::optional<Tensor> most, Tensor step, Tensor rows,
                     Tensor values, double lr, double beta1, double beta2, double eps, double weight_decay,
                     bool decoupled, bool maximize) {
  check_defined(param, "param");
  const Context context(param);
  const RowMemory memory = checked_row_memory(param, {&first, &second, pointer(most)}, rows, values);
  check_step(step, param, rows);
  const AdamArguments arguments{lr, beta1, beta2, eps, weight_decay, decoupled, maximize};
  for_dtype<__half, __nv_bfloat16>(param.scalar_type(), [&]<typename T>(std::type_identity<T>) {
    const Counted<Accumulator<T>> counted(context, step, arguments);
    T *const p = data_of<T>(param), *const m = data_of<T>(first), *const v = data_of<T>(second),
             *const w = data_of<T>(most);
    const ChosenRows<T> chosen{indices_of(rows), const_data_of<T>(values), memory};
    for_vector_width<T>(
        memory, rows.numel(), {p, m, v, w, chosen.values}, [&](auto vec, int64_t stretches, unsigned blocks) {
          const auto update = w ? update_adam<T, vec, true> : update_adam<T, vec, false>;
          launch(context, update, blocks, kThreads, 0, counted.given, counted.on_gpu, p, m, v, w, chosen, stretches);
        });
  });
}

}  // namespace
}  // namespace wuskern

STABLE_TORCH_LIBRARY_IMPL(wuskern_native, CUDA, m) { m.impl("rowsparse_adam_", TORCH_BOX(&wuskern::rowsparse_adam_)); }
