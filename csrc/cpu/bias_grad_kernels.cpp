// Eight vectors at a time are added in their own precision (16-bit elements as fp32), everything above that in fp64: it
// costs nothing here, since reading dY is what takes the time. Beyond the caches it takes half as long with prefetches:
// the processor's own follow one stream too closely behind.
//
// No function that the linker could share with other files may be called here, of the standard library or of our own
// unless it is always inlined: its copy would carry this file's instructions.
#include "bias_grad_kernels.h"

#include "../common/reduction.h"
#include "lanes.h"

namespace wuskern {
namespace {

constexpr int64_t kAhead = 8192;  // bytes between a load and the prefetch beside it
constexpr int64_t kLine = 64;     // bytes of a cache line

template <typename T>
WUSKERN_INLINE auto add_eight(const T* p, int64_t step) {
  const auto a = load(p) + load(p + step), b = load(p + 2 * step) + load(p + 3 * step);
  p += 4 * step;
  const auto c = load(p) + load(p + step), d = load(p + 2 * step) + load(p + 3 * step);
  return (a + b) + (c + d);
}

// Eight rows at a time: one trip through acc for eight loads.
template <typename T>
void add_rows(const T* __restrict src, int64_t stride, int64_t rows, int64_t columns, double* __restrict acc) {
  constexpr int64_t lanes = kLanesOf<T>, line = kLine / sizeof(T), block = line > lanes ? line : lanes;
  const int64_t group = 8 * (stride > 0 ? stride : 1);
  const int64_t ahead = ceil_div(kAhead, group * int64_t{sizeof(T)}) * group;  // whole groups of rows
  for (int64_t c = 0; c < columns; ++c) acc[c] = 0;
  int64_t r = 0;
  for (; r + 8 <= rows; r += 8) {
    const T* const p = src + r * stride;
    int64_t c = 0;
    for (; c + block <= columns; c += block) {
      for (int64_t row = 0; row < 8; ++row) __builtin_prefetch(p + c + row * stride + ahead);
      for (int64_t i = c; i < c + block; i += lanes) add_to(acc + i, add_eight(p + i, stride));
    }
    for (; c + lanes <= columns; c += lanes) add_to(acc + c, add_eight(p + c, stride));
    for (; c < columns; ++c) {
      for (int64_t row = 0; row < 8; ++row) acc[c] += widen(p[c + row * stride]);
    }
  }
  for (; r < rows; ++r) {
    const T* const p = src + r * stride;
    int64_t c = 0;
    for (; c + lanes <= columns; c += lanes) add_to(acc + c, load(p + c));
    for (; c < columns; ++c) acc[c] += widen(p[c]);
  }
}

template <typename T>
WUSKERN_INLINE double add_run(const T* __restrict src, int64_t size) {
  constexpr int64_t lanes = kLanesOf<T>, group = 8 * lanes;
  double sums[2 * lanes] = {};
  int64_t i = 0;
  for (; i + 2 * group <= size; i += 2 * group) {
    const char* const next = reinterpret_cast<const char*>(src + i) + kAhead;
    for (int64_t byte = 0; byte < 2 * group * int64_t{sizeof(T)}; byte += kLine) __builtin_prefetch(next + byte);
    add_to(sums, add_eight(src + i, lanes));
    add_to(sums + lanes, add_eight(src + i + group, lanes));
  }
  for (; i + lanes <= size; i += lanes) add_to(sums, load(src + i));
  for (int64_t rest = 0; i < size; ++i, ++rest) sums[lanes + rest] += widen(src[i]);
  return fold_tree(sums);
}

template <typename T>
void add_runs(const T* __restrict src, int64_t stride, int64_t runs, int64_t size, double* __restrict sums) {
  for (int64_t i = 0; i < runs; ++i) sums[i] = add_run(src + i * stride, size);
}

}  // namespace

namespace WUSKERN_CAPABILITY {

template <typename T>
BiasGradKernels<T> bias_grad_kernels() {
  return {add_rows<T>, add_runs<T>};
}
template BiasGradKernels<double> bias_grad_kernels();
template BiasGradKernels<float> bias_grad_kernels();
template BiasGradKernels<Half> bias_grad_kernels();
template BiasGradKernels<BFloat16> bias_grad_kernels();

}  // namespace WUSKERN_CAPABILITY
}  // namespace wuskern
