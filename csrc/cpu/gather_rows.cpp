// gather_rows on the CPU: the chosen rows of dY next to each other.
//
// Under each outer index a chosen row is a run of memory: one element of a Linear or of Conv2d in channels_last, a
// plane of a contiguous Conv2d. Consecutive rows are longer runs where they lie next to each other. Runs of up to 64
// bytes are moved by loads and stores of their size; what these cost is the cache lines that they touch, which are
// asked for in advance.
#include <vector>

#include "../common/reduction.h"
#include "../common/rows.h"
#include "../torch/checks.h"
#include "../torch/gather_order.h"

namespace wuskern {
namespace {

// In bytes.
constexpr int64_t kLine = 64;          // a cache line
constexpr int64_t kShortRun = kLine;   // the longest that is moved by loads and stores
constexpr int64_t kLongRun = 2048;     // runs from here on the processor prefetches by itself
constexpr int64_t kAhead = 8192;       // cache lines between a prefetch and its use
constexpr int64_t kTaskBytes = 32768;  // less to copy is not worth another thread
constexpr int64_t kCostOfRun = 16;     // what is copied in the time that a run takes anyhow

// ---- runs of bytes -------------------------------------------------------------------------------------------------

// What to copy under each outer index. Strides and offsets are in bytes.
struct Runs {
  int64_t outer, outer_stride;
  int64_t bytes;                 // of each run
  std::vector<int64_t> offsets;  // of the runs
  std::vector<int64_t> lines;    // one offset in each cache line that they touch, to be prefetched

  int64_t count() const { return static_cast<int64_t>(offsets.size()); }
  // From the use of a cache line to that of the one to prefetch.
  int64_t ahead() const { return ceil_div(kAhead, kLine * std::max<int64_t>(1, lines.size())) * outer_stride; }
};

WUSKERN_INLINE void prefetch(const char* p, const std::vector<int64_t>& offsets) {
  for (const int64_t offset : offsets) __builtin_prefetch(p + offset);
}

Runs runs_of(const Layout& layout, const int64_t* rows, int64_t k, int64_t element) {
  Runs runs{layout.outer, layout.outer_stride * element, layout.inner * element, {}, {}};
  const bool neighbours = layout.channel_stride == layout.inner;
  const int64_t length = neighbours ? run_length(rows, k, std::max(int64_t{1}, kShortRun / runs.bytes)) : 1;
  runs.bytes *= length;
  for (int64_t i = 0; i < k; i += length) {
    const int64_t offset = rows[i] * layout.channel_stride * element;
    runs.offsets.push_back(offset);
    for (int64_t byte = 0; byte < runs.bytes && runs.bytes < kLongRun; byte += kLine) {
      if (runs.lines.empty() || (offset + byte) / kLine != runs.lines.back() / kLine)
        runs.lines.push_back(offset + byte);
    }
  }
  return runs;
}

// out[outer, count, bytes] for some of the outer indices. A constant number of bytes becomes loads and stores.
template <int64_t bytes>
void copy_short(const char* __restrict src, const Runs& runs, int64_t begin, int64_t end, char* __restrict out) {
  const int64_t count = runs.count(), stride = runs.outer_stride, ahead = runs.ahead();
  const int64_t* const offsets = runs.offsets.data();
  const char* from = src + begin * stride;
  char* to = out + begin * count * bytes;
  for (int64_t o = begin; o < end; ++o, from += stride, to += count * bytes) {
    prefetch(from + ahead, runs.lines);
    for (int64_t i = 0; i < count; ++i) memcpy(to + i * bytes, from + offsets[i], bytes);
  }
}

// out[outer * count, bytes] for some of the runs.
void copy_long(const char* src, const Runs& runs, int64_t begin, int64_t end, char* out) {
  const int64_t count = runs.count(), ahead = runs.ahead();
  for (int64_t i = begin; i < end;) {
    const char* const from = src + i / count * runs.outer_stride;
    prefetch(from + ahead, runs.lines);
    for (int64_t run = i % count; run < count && i < end; ++run, ++i) {
      memcpy(out + i * runs.bytes, from + runs.offsets[run], runs.bytes);
    }
  }
}

using CopyShort = void (*)(const char*, const Runs&, int64_t, int64_t, char*);

// nullptr for runs that are long or of an odd size.
CopyShort copy_short_of(int64_t bytes) {
  switch (bytes) {
    case 2:
      return copy_short<2>;
    case 4:
      return copy_short<4>;
    case 8:
      return copy_short<8>;
    case 16:
      return copy_short<16>;
    case 32:
      return copy_short<32>;
    case 64:
      return copy_short<64>;
    default:
      return nullptr;
  }
}

void gather(const char* src, const Runs& runs, char* out) {
  const int64_t count = runs.count(), runs_per_task = ceil_div(kTaskBytes, runs.bytes + kCostOfRun);
  if (const CopyShort copy = copy_short_of(runs.bytes)) {
    torch::stable::parallel_for(0, runs.outer, ceil_div(runs_per_task, count),
                                [&](int64_t begin, int64_t end) { copy(src, runs, begin, end, out); });
    return;
  }
  torch::stable::parallel_for(0, runs.outer * count, runs_per_task,
                              [&](int64_t begin, int64_t end) { copy_long(src, runs, begin, end, out); });
}

// ---- op ------------------------------------------------------------------------------------------------------------

Tensor gather_rows(Tensor dy, Tensor rows, int64_t dim) {
  check_dtype(dy, "dy");
  dim = front_dim(dy, dim);
  check_index(rows, dy, dy.size(dim));
  make_contiguous(rows);
  check_rows(rows, dy.size(dim));
  const GatherOrder order(dy);
  Tensor out = order.new_result(dy, dim, rows.numel());
  if (out.numel() == 0) return out;

  const Layout layout = order.layout(dy, dim);
  const Runs runs = runs_of(layout, indices_of(rows), rows.numel(), dy.element_size());
  gather(const_data_of<char>(dy), runs, data_of<char>(out));
  return out;
}

}  // namespace
}  // namespace wuskern

STABLE_TORCH_LIBRARY_IMPL(wuskern_native, CPU, m) { m.impl("gather_rows", TORCH_BOX(&wuskern::gather_rows)); }
