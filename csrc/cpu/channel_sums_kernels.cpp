// Eight vectors at a time are added in their own precision (16-bit elements as fp32), everything above that in fp64: it
// costs nothing here, since reading dY is what takes the time. Beyond the caches it takes half as long with prefetches:
// the processor's own follow one stream too closely behind.
//
// No function that the linker could share with other files may be called here, of the standard library or of our own
// unless it is always inlined: its copy would carry this file's instructions.
#include "channel_sums_kernels.h"

#include "../common/reduction.h"
#include "lanes.h"

namespace wuskern {
namespace {

constexpr int64_t kAhead = 8192;  // bytes between a load and the prefetch beside it
constexpr int64_t kLine = 64;     // bytes of a cache line

// ---- one sum and its score -----------------------------------------------------------------------------------------

template <Score score, typename X>
WUSKERN_INLINE X scored(X x) {
  return score == Score::l1 ? absolute(x) : x * x;
}

template <typename Vector>
struct Both {
  Vector sum, score;
};

template <typename Vector>
WUSKERN_INLINE Both<Vector> operator+(Both<Vector> a, Both<Vector> b) {
  return {a.sum + b.sum, a.score + b.score};
}

// A vector, or Both where there is a score.
template <Score score, typename Vector>
WUSKERN_INLINE auto with_score(Vector x) {
  if constexpr (score == Score::none) {
    return x;
  } else {
    return Both<Vector>{x, scored<score>(x)};
  }
}

// The sum of `count` vectors, a power of two, as a tree; two at a time, so that sixteen registers are enough.
template <Score score, int count, typename T>
WUSKERN_INLINE auto add_up(const T* p, int64_t step) {
  if constexpr (count == 1) {
    return with_score<score>(load(p));
  } else {
    const auto first = add_up<score, count / 2>(p, step);
    return first + add_up<score, count / 2>(p + count / 2 * step, step);
  }
}

// sums[lanes] += vector
template <typename Vector>
WUSKERN_INLINE void put(Vector vector, double* sums, double*) {
  add_to(sums, vector);
}

template <typename Vector>
WUSKERN_INLINE void put(Both<Vector> both, double* sums, double* scores) {
  add_to(sums, both.sum);
  add_to(scores, both.score);
}

// The same in registers, for a run.
struct RunSums {
  Lanes sums, scores;

  template <typename Vector>
  WUSKERN_INLINE void put(Vector vector) {
    sums.add(vector);
  }
  template <typename Vector>
  WUSKERN_INLINE void put(Both<Vector> both) {
    sums.add(both.sum);
    scores.add(both.score);
  }
};

WUSKERN_INLINE double fold(Lanes a, Lanes b) {
  const Doubles sum = (a.low + b.low) + (a.high + b.high);
  double lane[8];
  memcpy(lane, &sum, sizeof(lane));
  return fold_tree(lane);
}

// ---- kernels -------------------------------------------------------------------------------------------------------

// sums[columns] += src[count, columns]
template <Score score, int count, typename T>
WUSKERN_INLINE void add_some_rows(const T* p, int64_t stride, int64_t columns, int64_t ahead, double* __restrict sums,
                                  double* __restrict scores) {
  constexpr int64_t lanes = kLanesOf<T>, line = kLine / sizeof(T), block = line > lanes ? line : lanes;
  int64_t c = 0;
  if constexpr (count == 8) {
    for (; c + block <= columns; c += block) {
      for (int64_t row = 0; row < count; ++row) __builtin_prefetch(p + c + row * stride + ahead);
      for (int64_t i = c; i < c + block; i += lanes) put(add_up<score, count>(p + i, stride), sums + i, scores + i);
    }
  }
  for (; c + lanes <= columns; c += lanes) put(add_up<score, count>(p + c, stride), sums + c, scores + c);
  for (; c < columns; ++c) {
    double sum = 0, sum_of_scores = 0;
    for (int64_t row = 0; row < count; ++row) {
      const double x = widen(p[c + row * stride]);
      sum += x;
      sum_of_scores += scored<score>(x);
    }
    sums[c] += sum;
    if constexpr (score != Score::none) scores[c] += sum_of_scores;
  }
}

// Eight rows at a time: one trip through the accumulators for eight loads.
template <Score score, typename T>
void add_rows(const T* __restrict src, int64_t stride, int64_t rows, int64_t columns, double* __restrict sums,
              double* __restrict scores) {
  const int64_t group = 8 * (stride > 0 ? stride : 1);
  const int64_t ahead = ceil_div(kAhead, group * int64_t{sizeof(T)}) * group;  // whole groups of rows
  for (int64_t c = 0; c < columns; ++c) sums[c] = 0;
  if constexpr (score != Score::none) {
    for (int64_t c = 0; c < columns; ++c) scores[c] = 0;
  }
  for (; rows >= 8; rows -= 8, src += 8 * stride) add_some_rows<score, 8>(src, stride, columns, ahead, sums, scores);
  for (; rows >= 4; rows -= 4, src += 4 * stride) add_some_rows<score, 4>(src, stride, columns, ahead, sums, scores);
  for (; rows >= 1; rows -= 1, src += stride) add_some_rows<score, 1>(src, stride, columns, ahead, sums, scores);
}

template <Score score, typename T>
WUSKERN_INLINE void add_run(const T* __restrict src, int64_t size, double* sum, double* run_score) {
  constexpr int64_t lanes = kLanesOf<T>, group = 8 * lanes;
  RunSums a, b;
  int64_t i = 0;
  for (; i + 2 * group <= size; i += 2 * group) {
    const char* const next = reinterpret_cast<const char*>(src + i) + kAhead;
    for (int64_t byte = 0; byte < 2 * group * int64_t{sizeof(T)}; byte += kLine) __builtin_prefetch(next + byte);
    a.put(add_up<score, 8>(src + i, lanes));
    b.put(add_up<score, 8>(src + i + group, lanes));
  }
  for (; i + lanes <= size; i += lanes) a.put(with_score<score>(load(src + i)));
  if (i < size) b.put(with_score<score>(load_part(src + i, size - i)));
  *sum = fold(a.sums, b.sums);
  if constexpr (score != Score::none) *run_score = fold(a.scores, b.scores);
}

template <Score score, typename T>
void add_runs(const T* __restrict src, int64_t stride, int64_t runs, int64_t size, double* __restrict sums,
              double* __restrict scores) {
  for (int64_t i = 0; i < runs; ++i) add_run<score>(src + i * stride, size, sums + i, scores + i);
}

}  // namespace

namespace WUSKERN_CAPABILITY {

template <typename T>
ChannelSumsKernels<T> channel_sums_kernels(Score score) {
  switch (score) {
    case Score::l1:
      return {add_rows<Score::l1, T>, add_runs<Score::l1, T>};
    case Score::l2:
      return {add_rows<Score::l2, T>, add_runs<Score::l2, T>};
    default:
      return {add_rows<Score::none, T>, add_runs<Score::none, T>};
  }
}
template ChannelSumsKernels<double> channel_sums_kernels(Score);
template ChannelSumsKernels<float> channel_sums_kernels(Score);
template ChannelSumsKernels<Half> channel_sums_kernels(Score);
template ChannelSumsKernels<BFloat16> channel_sums_kernels(Score);

}  // namespace WUSKERN_CAPABILITY
}  // namespace wuskern
