// Sums over everything but the channels, in one read: what bias_grad and row_stats have in common on the CPU.
//
// Two kernels do it. sum_rows adds rows of neighbouring channels (Linear, channels_last); sum_planes adds up runs of
// memory that belong to one channel (contiguous Conv2d). Each reduces a bounded chunk, and the chunks' sums go through
// sum_rows again until one row is left, so no order depends on the number of threads. Scores take the same way as the
// sums, which therefore have the same bits with and without them.
#pragma once

#include <algorithm>
#include <memory>
#include <numeric>
#include <optional>

#include "../common/half.h"
#include "../common/reduction.h"
#include "../torch/tensors.h"
#include "channel_sums_kernels.h"

namespace wuskern {

constexpr int64_t kTileColumns =
    512;                             // 4 KiB of accumulators, and as many of scores: room for what is prefetched in L1
constexpr int64_t kChunkRows = 128;  // rows that one accumulator takes in, or more where they are short
constexpr int64_t kChunk = 65536;    // elements of such a chunk
constexpr int64_t kRowsOfDoubles = 64;  // rows of fp64 per accumulator: more in line would cost digits
constexpr int64_t kSegment = 16384;     // elements of a plane, or of several short ones, that one task takes in
constexpr int64_t kShortPlane = 512;    // shorter planes of kManyPlanes images are added up image by image first
constexpr int64_t kManyPlanes = 8;
constexpr int64_t kShortRun = 64;         // shorter runs between gaps are copied together first
constexpr int64_t kTaskElements = 32768;  // less is not worth another thread
constexpr int64_t kNarrow = 256;          // fewer columns are made more, where they do not fill vectors
constexpr int64_t kVector = 16;           // elements that the kernels take at a time

// ---- launchers: raw pointers, one parallel loop each ---------------------------------------------------------------

template <typename T>
ChannelSumsKernels<T> channel_sums_kernels(Score score) {
#define WUSKERN_PICK(NAME) \
  if (capability() == Capability::NAME) return NAME::channel_sums_kernels<T>(score);
  WUSKERN_FOR_EACH_CAPABILITY(WUSKERN_PICK)
#undef WUSKERN_PICK
  return baseline::channel_sums_kernels<T>(score);
}

// Where sums and scores go; under Score::none there is no array of scores.
template <typename Sum, typename ScoreSum>
struct Targets {
  Score score;
  Sum* sums;
  ScoreSum* scores;
};

// Sums and scores on their way, in fp64.
class Partial {
 public:
  Partial(Score score, int64_t size)
      : score_(score), size_(size), data_(new double[score == Score::none ? size : 2 * size]) {}

  double* sums() const { return data_.get(); }
  double* scores() const { return data_.get() + (score_ == Score::none ? 0 : size_); }
  Targets<double, double> targets() const { return {score_, sums(), scores()}; }

  // Calls body(partial sums, Targets) for the sums, and for the scores, which from here on are only added.
  template <typename Sum, typename ScoreSum, typename Body>
  void finish(const Targets<Sum, ScoreSum>& out, Body&& body) const {
    body(sums(), Targets<Sum, double>{Score::none, out.sums, nullptr});
    if (score_ != Score::none) body(scores(), Targets<ScoreSum, double>{Score::none, out.scores, nullptr});
  }

 private:
  Score score_;
  int64_t size_;
  std::unique_ptr<double[]> data_;
};

inline int64_t tasks_per_thread(int64_t elements_per_task) { return ceil_div(kTaskElements, elements_per_task); }

// out[columns] = sum of src[rows, columns]
template <typename T, typename Sum, typename ScoreSum>
void sum_rows(const T* src, int64_t stride, int64_t rows, int64_t columns, const Targets<Sum, ScoreSum>& out) {
  const ChannelSumsKernels<T> kernel = channel_sums_kernels<T>(out.score);
  const int64_t in_line = std::is_same_v<T, double> ? kRowsOfDoubles : std::max(kChunkRows, kChunk / columns);
  const Chunks chunks{rows, in_line}, tiles{columns, kTileColumns};
  const bool last = chunks.count() == 1;
  const bool narrows = last && !std::is_same_v<Sum, double>;  // doubles are written where they belong
  const Partial partial(out.score, last ? 0 : chunks.count() * columns);
  const Targets<double, double> wide = [&] {
    if constexpr (std::is_same_v<Sum, double>) {
      if (last) return Targets<double, double>{out.score, out.sums, out.score == Score::none ? out.sums : out.scores};
    }
    return partial.targets();
  }();

  const int64_t tile_elements = std::min(rows, chunks.size) * std::min(columns, kTileColumns);
  torch::stable::parallel_for(
      0, chunks.count() * tiles.count(), tasks_per_thread(tile_elements), [&](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; ++task) {
          const int64_t chunk = task / tiles.count(), tile = task % tiles.count();
          const int64_t column = tiles.begin(tile), width = tiles.end(tile) - column;
          const T* const corner = src + chunks.begin(chunk) * stride + column;
          const int64_t height = chunks.end(chunk) - chunks.begin(chunk), at = chunk * columns + column;
          if (narrows) {
            double sums[kTileColumns], scores[kTileColumns];
            kernel.add_rows(corner, stride, height, width, sums, scores);
            for (int64_t c = 0; c < width; ++c) narrow(sums[c], &out.sums[column + c]);
            for (int64_t c = 0; out.score != Score::none && c < width; ++c) narrow(scores[c], &out.scores[column + c]);
          } else {
            kernel.add_rows(corner, stride, height, width, wide.sums + at, wide.scores + at);
          }
        }
      });
  if (last) return;
  partial.finish(
      out, [&](const double* sums, const auto& target) { sum_rows(sums, columns, chunks.count(), columns, target); });
}

// The same where dense rows are too short for vectors: several in a row make a wide one, whose parts are added last.
template <typename T, typename Sum, typename ScoreSum>
void sum_narrow_rows(const T* src, int64_t rows, int64_t columns, const Targets<Sum, ScoreSum>& out) {
  const int64_t together = kVector / std::gcd(columns, int64_t{kVector}), wide = columns * together;
  const int64_t rest = rows % together;
  const Partial parts(out.score, wide + rest * columns);
  sum_rows(src, wide, rows / together, wide, parts.targets());
  const ChannelSumsKernels<T> kernel = channel_sums_kernels<T>(out.score);
  kernel.add_runs(src + (rows - rest) * columns, 1, rest * columns, 1, parts.sums() + wide, parts.scores() + wide);
  parts.finish(
      out, [&](const double* sums, const auto& target) { sum_rows(sums, columns, together + rest, columns, target); });
}

// out[channels] = sum of src[outer, channels, inner], inner being runs of memory
template <typename T, typename Sum, typename ScoreSum>
void sum_planes(const T* src, const Layout& layout, const Targets<Sum, ScoreSum>& out) {
  const ChannelSumsKernels<T> kernel = channel_sums_kernels<T>(out.score);
  const Chunks segments{layout.inner, kSegment}, groups{layout.channels, ceil_div(kSegment, layout.inner)};
  const int64_t rows = layout.outer * segments.count();
  const Partial partial(out.score, rows * layout.channels);  // [outer, segments, channels]

  const int64_t task_elements = std::min(layout.inner, kSegment) * std::min(layout.channels, groups.size);
  torch::stable::parallel_for(
      0, rows * groups.count(), tasks_per_thread(task_elements), [&](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; ++task) {  // in memory order: [outer, groups of channels, segments]
          const int64_t segment = task % segments.count(), rest = task / segments.count();
          const int64_t group = rest % groups.count(), outer = rest / groups.count();
          const int64_t channel = groups.begin(group), first = segments.begin(segment);
          const T* const runs = src + outer * layout.outer_stride + channel * layout.channel_stride + first;
          const int64_t at = (outer * segments.count() + segment) * layout.channels + channel;
          kernel.add_runs(runs, layout.channel_stride, groups.end(group) - channel, segments.end(segment) - first,
                          partial.sums() + at, partial.scores() + at);
        }
      });
  partial.finish(out, [&](const double* sums, const auto& target) {
    sum_rows(sums, layout.channels, rows, layout.channels, target);
  });
}

template <typename T, typename Sum, typename ScoreSum>
void sum_channels(const T* src, const Layout& layout, const Targets<Sum, ScoreSum>& out) {
  if (layout.is_dense_rows() && layout.channels < kNarrow && layout.channels % kVector && layout.outer >= kVector) {
    sum_narrow_rows(src, layout.outer, layout.channels, out);
  } else if (layout.is_rows()) {
    sum_rows(src, layout.outer_stride, layout.outer, layout.channels, out);
  } else if (layout.is_dense_planes() && layout.inner < kShortPlane && layout.outer >= kManyPlanes) {
    const int64_t width = layout.channels * layout.inner;
    const Partial planes(out.score, width);
    sum_rows(src, layout.outer_stride, layout.outer, width, planes.targets());
    planes.finish(out, [&](const double* sums, const auto& target) {
      sum_planes(sums, {1, layout.channels, layout.inner, width, layout.inner, 1}, target);
    });
  } else {
    sum_planes(src, layout, out);
  }
}

// ---- tensors -------------------------------------------------------------------------------------------------------

inline bool fits(const Layout& layout) {
  return layout.is_rows() || layout.is_dense_planes() || (layout.is_planes() && layout.inner >= kShortRun);
}

// How dy lies in memory, once copied if that does not fit the kernels. dy is not empty.
inline Layout foldable(Tensor& dy, int64_t dim) {
  return layout_or_copy(dy, [&](const Tensor& t) {
    const std::optional<Layout> folded = fold(t, dim);
    return folded && fits(*folded) ? folded : std::nullopt;
  });
}

}  // namespace wuskern
