// rowsparse_sgd_ on the CPU: one step of SGD in the chosen rows of a parameter, in one pass over them.
#include "row_update.h"

namespace wuskern {
namespace {

void rowsparse_sgd_(Tensor param, std::optional<Tensor> buffer, Tensor rows, Tensor values, double lr, double momentum,
                    double dampening, double weight_decay, bool nesterov, bool maximize) {
  const RowMemory memory = checked_row_memory(param, {pointer(buffer)}, rows, values);
  check_rows(rows, param.size(0), true);
  for_dtype<Half, BFloat16>(param.scalar_type(), [&]<typename T>(std::type_identity<T>) {
    const auto numbers = sgd_numbers<Arithmetic<T>>(lr, momentum, dampening, weight_decay, nesterov, maximize);
    const auto update = row_update_kernels<T>().sgd;
    T* const b = data_of<T>(buffer);
    for_runs<T>(memory, data_of<T>(param), rows, values,
                [&](T* p, int64_t state_offset, const GradientRun<T>& gradient) {
                  update(numbers, p, b ? b + state_offset : nullptr, gradient);
                });
  });
}

}  // namespace
}  // namespace wuskern

STABLE_TORCH_LIBRARY_IMPL(wuskern_native, CPU, m) { m.impl("rowsparse_sgd_", TORCH_BOX(&wuskern::rowsparse_sgd_)); }
