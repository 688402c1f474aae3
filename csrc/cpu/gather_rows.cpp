// gather_rows on the CPU: the chosen rows of dY next to each other.
//
// Under each outer index a chosen row is a run of memory: one element of a Linear or of Conv2d in channels_last, a
// plane of a contiguous Conv2d. Consecutive rows are longer runs where they lie next to each other. Runs of up to 64
// bytes are moved by loads and stores of their size; what these cost is the cache lines that they touch, which are asked
// for in advance.
#include <vector>

#include "../common/reduction.h"
#include "../common/rows.h"
#include "../stable_abi.h"

namespace wuskern {
namespace {

constexpr int64_t kLine = 64;                // bytes of a cache line
constexpr int64_t kAhead = 8192;             // bytes of cache lines between a prefetch and its use
constexpr int64_t kTaskBytes = 131072;       // less to copy is not worth another thread
constexpr int64_t kCostOfRun = 16;           // bytes that are copied in the time that a run takes anyhow
constexpr int64_t kShortRun = kLine;         // bytes

// ---- runs of bytes -------------------------------------------------------------------------------------------------

// What to copy under each outer index.
struct Runs {
  int64_t outer, outer_stride;   // in bytes, as all here
  int64_t bytes;                 // of each run
  std::vector<int64_t> offsets;  // of the runs
  std::vector<int64_t> lines;    // one offset in each cache line that they touch

  int64_t count() const { return static_cast<int64_t>(offsets.size()); }
};

Runs runs_of(const Layout& layout, const int64_t* rows, int64_t k, int64_t element) {
  Runs runs{layout.outer, layout.outer_stride * element, layout.inner * element, {}, {}};
  const bool neighbours = layout.channel_stride == layout.inner;
  const int64_t length = neighbours ? run_length(rows, k, std::max(int64_t{1}, kShortRun / runs.bytes)) : 1;
  for (int64_t i = 0; i < k; i += length) {
    const int64_t offset = rows[i] * layout.channel_stride * element;
    if (runs.lines.empty() || offset / kLine != runs.lines.back() / kLine) runs.lines.push_back(offset);
    runs.offsets.push_back(offset);
  }
  runs.bytes *= length;
  return runs;
}

// out[count, bytes] = the runs at src + offsets. A constant number of bytes becomes loads and stores.
template <int64_t bytes>
void copy_short(const char* __restrict src, const int64_t* __restrict offsets, int64_t count, char* __restrict out) {
  for (int64_t i = 0; i < count; ++i) memcpy(out + i * bytes, src + offsets[i], bytes);
}

using CopyShort = void (*)(const char*, const int64_t*, int64_t, char*);

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
  const CopyShort copy_short = copy_short_of(runs.bytes);
  const int64_t count = runs.count(), ahead = ceil_div(kAhead, kLine * runs.lines.size()) * runs.outer_stride;
  torch::stable::parallel_for(
      0, runs.outer * count, ceil_div(kTaskBytes, runs.bytes + kCostOfRun), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end;) {
          const int64_t first = i % count, some = std::min(count - first, end - i);
          const char* const from = src + i / count * runs.outer_stride;
          if (copy_short != nullptr) {
            for (const int64_t line : runs.lines) __builtin_prefetch(from + ahead + line);
            copy_short(from, runs.offsets.data() + first, some, out + i * runs.bytes);
          } else {
            for (int64_t j = 0; j < some; ++j) {
              memcpy(out + (i + j) * runs.bytes, from + runs.offsets[first + j], runs.bytes);
            }
          }
          i += some;
        }
      });
}

// ---- op ------------------------------------------------------------------------------------------------------------

// How the result lies, and dy with it: in the order of its dimensions, or [B, H, W, C].
struct Order {
  bool channels_last;
  std::vector<int64_t> dims;

  explicit Order(const Tensor& dy)
      : channels_last(dy.dim() == 4 && !dy.is_contiguous() && is_channels_last(dy.sizes().data(), dy.strides().data())) {
    for (int64_t d = 0; d < dy.dim(); ++d) dims.push_back(d);
    if (channels_last) dims = {0, 2, 3, 1};
  }

  std::optional<Layout> fold(const Tensor& dy, int64_t dim) const {
    std::vector<int64_t> sizes, strides;
    for (const int64_t d : dims) {
      sizes.push_back(dy.size(d));
      strides.push_back(dy.stride(d));
    }
    const int64_t place = std::find(dims.begin(), dims.end(), dim) - dims.begin();
    return fold_in_order(sizes.data(), strides.data(), dy.dim(), place);
  }
};

Tensor new_like(const Tensor& dy, int64_t dim, int64_t k, bool channels_last) {
  std::vector<int64_t> sizes(dy.sizes().begin(), dy.sizes().end());
  sizes[dim] = k;
  if (!channels_last) return torch::stable::new_empty(dy, sizes);
  return torch::stable::empty(sizes, dy.scalar_type(), std::nullopt, std::nullopt, std::nullopt,
                              torch::headeronly::MemoryFormat::ChannelsLast);
}

void check_rows(const Tensor& rows, int64_t size) {
  STD_TORCH_CHECK(rows.is_cpu() && rows.scalar_type() == ScalarType::Long && rows.dim() == 1,
                  "rows: expected int64 of one dimension on the CPU");
  const int64_t* const row = static_cast<const int64_t*>(rows.const_data_ptr());
  for (int64_t i = 0; i < rows.numel(); ++i) {
    STD_TORCH_CHECK(row[i] >= 0 && row[i] < size, "rows: expected indices from 0 to ", size - 1, ", got ", row[i]);
  }
}

Tensor gather_rows(Tensor dy, Tensor rows, int64_t dim) {
  dim = front_dim(dy, dim);
  rows = torch::stable::contiguous(rows);
  check_rows(rows, dy.size(dim));
  const Order order(dy);
  Tensor out = new_like(dy, dim, rows.numel(), order.channels_last);
  if (out.numel() == 0) return out;

  std::optional<Layout> layout = order.fold(dy, dim);
  if (!layout || layout->inner_stride != 1) {
    dy = torch::stable::contiguous(dy);
    layout = order.fold(dy, dim);
  }
  int64_t element = 0;
  for_dtype<Half, BFloat16>(dy.scalar_type(), [&]<typename T>(std::type_identity<T>) { element = sizeof(T); });
  const int64_t* const row = static_cast<const int64_t*>(rows.const_data_ptr());
  const Runs runs = runs_of(*layout, row, rows.numel(), element);
  gather(static_cast<const char*>(dy.const_data_ptr()), runs, static_cast<char*>(out.mutable_data_ptr()));
  return out;
}

}  // namespace
}  // namespace wuskern

STABLE_TORCH_LIBRARY_IMPL(wuskern_native, CPU, m) { m.impl("gather_rows", TORCH_BOX(&wuskern::gather_rows)); }
