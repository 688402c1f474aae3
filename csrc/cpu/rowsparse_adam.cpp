// rowsparse_adam_ on the CPU: one step of Adam or AdamW in the chosen rows of a parameter, in one pass over them.
#include "row_update.h"

namespace wuskern {
namespace {

// Counts the step, and tells the number.
double count(Tensor& step) {
  if (step.scalar_type() == ScalarType::Double) return *data_of<double>(step) += 1;
  return *data_of<float>(step) += 1;
}

void rowsparse_adam_(Tensor param, Tensor first, Tensor second, std::optional<Tensor> most, Tensor step, Tensor rows,
                     Tensor values, double lr, double beta1, double beta2, double eps, double weight_decay,
                     bool decoupled, bool maximize) {
  const RowMemory memory = checked_row_memory(param, {&first, &second, pointer(most)}, rows, values);
  check_rows(rows, param.size(0), true);
  check_step(step, param, rows);
  const AdamArguments arguments{lr, beta1, beta2, eps, weight_decay, decoupled, maximize};
  const double steps = count(step);
  for_dtype<Half, BFloat16>(param.scalar_type(), [&]<typename T>(std::type_identity<T>) {
    const auto numbers = adam_numbers<Arithmetic<T>>(arguments, steps);
    const auto update = row_update_kernels<T>().adam;
    T *const m = data_of<T>(first), *const v = data_of<T>(second), *const w = data_of<T>(most);
    for_runs<T>(memory, data_of<T>(param), rows, values,
                [&](T* p, int64_t state_offset, const GradientRun<T>& gradient) {
                  T* const most_of = w ? w + state_offset : nullptr;
                  update(numbers, p, m + state_offset, v + state_offset, most_of, gradient);
                });
  });
}

}  // namespace
}  // namespace wuskern

STABLE_TORCH_LIBRARY_IMPL(wuskern_native, CPU, m) { m.impl("rowsparse_adam_", TORCH_BOX(&wuskern::rowsparse_adam_)); }
