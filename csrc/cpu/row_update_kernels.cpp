// Vectors of neighbours are widened, updated and rounded once. What is left over at the end of a run goes through a
// vector padded with zeros.
//
// No function that the linker could share with other files may be called here (see channel_sums_kernels.cpp).
#include "row_update_kernels.h"

#include "lanes.h"

namespace wuskern {
namespace {

// What belongs to one vector of a parameter: the first `count` elements of a run, copied to a whole vector and back.
template <typename T>
struct Padded {
  T lanes[kLanesOf<T>] = {};

  WUSKERN_INLINE Padded(const T* from, int64_t count) {
    for (int64_t i = 0; i < count && from != nullptr; ++i) lanes[i] = from[i];
  }
  WUSKERN_INLINE void give_back(T* to, int64_t count) const {
    for (int64_t i = 0; i < count && to != nullptr; ++i) to[i] = lanes[i];
  }
};

// To be written to, too.
template <typename... T>
WUSKERN_INLINE void prefetch(const T*... p) {
  (__builtin_prefetch(p, 1), ...);
}

// ---- SGD -----------------------------------------------------------------------------------------------------------

template <bool has_buffer, typename T>
WUSKERN_INLINE void sgd_vector(const SgdNumbers<Arithmetic<T>>& n, T* param, T* buffer, const T* values) {
  auto p = load(param), b = p;
  if constexpr (has_buffer) b = load(buffer);
  sgd<has_buffer>(n, p, b, load(values));
  store(param, p);
  if constexpr (has_buffer) store(buffer, b);
}

template <bool has_buffer, typename T>
WUSKERN_INLINE void sgd_run(const SgdNumbers<Arithmetic<T>> n, T* param, T* buffer, const GradientRun<T> gradient) {
  const auto [values, count, ahead, state_ahead] = gradient;
  int64_t i = 0;
  for (; i + kLanesOf<T> <= count; i += kLanesOf<T>) {
    prefetch(param + i + ahead, has_buffer ? buffer + i + state_ahead : nullptr);
    sgd_vector<has_buffer>(n, param + i, has_buffer ? buffer + i : nullptr, values + i);
  }
  if (i == count) return;
  T* const rest = has_buffer ? buffer + i : nullptr;
  Padded<T> p(param + i, count - i), b(rest, count - i), g(values + i, count - i);
  sgd_vector<has_buffer>(n, p.lanes, b.lanes, g.lanes);
  p.give_back(param + i, count - i);
  b.give_back(rest, count - i);
}

template <typename T>
void sgd_of(const SgdNumbers<Arithmetic<T>>& n, T* param, T* buffer, const GradientRun<T>& gradient) {
  return buffer ? sgd_run<true>(n, param, buffer, gradient) : sgd_run<false>(n, param, buffer, gradient);
}

// ---- Adam ----------------------------------------------------------------------------------------------------------

struct Root {
  template <typename Vector>
  WUSKERN_INLINE Vector operator()(Vector x) const {
    return square_root(x);
  }
};

template <bool amsgrad, typename T>
WUSKERN_INLINE void adam_vector(const AdamNumbers<Arithmetic<T>>& n, T* param, T* first, T* second, T* most,
                                const T* values) {
  auto p = load(param), m = load(first), v = load(second), w = v;
  if constexpr (amsgrad) w = load(most);
  adam<amsgrad>(n, p, m, v, w, load(values), Root());
  store(param, p);
  store(first, m);
  store(second, v);
  if constexpr (amsgrad) store(most, w);
}

template <bool amsgrad, typename T>
WUSKERN_INLINE void adam_run(const AdamNumbers<Arithmetic<T>> n, T* param, T* first, T* second, T* most,
                             const GradientRun<T> gradient) {
  const auto [values, count, ahead, state_ahead] = gradient;
  int64_t i = 0;
  for (; i + kLanesOf<T> <= count; i += kLanesOf<T>) {
    prefetch(param + i + ahead, first + i + state_ahead, second + i + state_ahead,
             amsgrad ? most + i + state_ahead : nullptr);
    adam_vector<amsgrad>(n, param + i, first + i, second + i, amsgrad ? most + i : nullptr, values + i);
  }
  if (i == count) return;
  T* const rest = amsgrad ? most + i : nullptr;
  Padded<T> p(param + i, count - i), m(first + i, count - i), v(second + i, count - i), w(rest, count - i),
      g(values + i, count - i);
  adam_vector<amsgrad>(n, p.lanes, m.lanes, v.lanes, w.lanes, g.lanes);
  p.give_back(param + i, count - i);
  m.give_back(first + i, count - i);
  v.give_back(second + i, count - i);
  w.give_back(rest, count - i);
}

template <typename T>
void adam_of(const AdamNumbers<Arithmetic<T>>& n, T* param, T* first, T* second, T* most,
             const GradientRun<T>& gradient) {
  return most ? adam_run<true>(n, param, first, second, most, gradient)
              : adam_run<false>(n, param, first, second, most, gradient);
}

}  // namespace

namespace WUSKERN_CAPABILITY {

template <typename T>
RowUpdateKernels<T> row_update_kernels() {
  return {sgd_of<T>, adam_of<T>};
}

template RowUpdateKernels<double> row_update_kernels();
template RowUpdateKernels<float> row_update_kernels();
template RowUpdateKernels<Half> row_update_kernels();
template RowUpdateKernels<BFloat16> row_update_kernels();

}  // namespace WUSKERN_CAPABILITY
}  // namespace wuskern
