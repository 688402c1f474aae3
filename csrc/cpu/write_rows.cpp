// write_rows(target, stale, rows, values): target[stale] = 0 and target[rows] = values, in place. What the dense form
// of a row-sparse gradient needs where its storage is used again; wuskern/delivery/dense_grad.py owns that storage.
#include <cstring>

#include "../common/reduction.h"
#include "../torch/row_memory.h"

namespace wuskern {
namespace {

constexpr int64_t kTaskBytes = 65536;  // less is not worth another thread
constexpr int64_t kTile = 16;          // a transposition reads and writes whole cache lines of 4-byte elements

// dst[taps, channels] = src[channels, taps]
template <typename T>
void transpose(const T* src, T* dst, int64_t channels, int64_t taps) {
  for (int64_t first = 0; first < channels; first += kTile) {
    const int64_t last = first + kTile < channels ? first + kTile : channels;
    for (int64_t tap = 0; tap < taps; ++tap) {
      for (int64_t c = first; c < last; ++c) dst[tap * channels + c] = src[c * taps + tap];
    }
  }
}

void transpose_bytes(const char* src, char* dst, int64_t channels, int64_t taps, int64_t size) {
  if (size == 2) transpose((const uint16_t*)src, (uint16_t*)dst, channels, taps);
  if (size == 4) transpose((const uint32_t*)src, (uint32_t*)dst, channels, taps);
  if (size == 8) transpose((const uint64_t*)src, (uint64_t*)dst, channels, taps);
}

// Rows of target are dense in memory: [out, ...] contiguous, or [out, C, kh, kw] in channels_last.
void write_rows(Tensor target, std::optional<Tensor> stale, Tensor rows, Tensor values) {
  check_rows_of(target, "target");
  const int64_t out = target.size(0);
  std::vector<int64_t> sizes = sizes_of(target);
  for (const auto& [index, name] : {std::pair{&rows, "rows"}, std::pair{stale ? &*stale : &rows, "stale"}}) {
    check_index(*index, target, out, "target", name);
    check_rows(*index, out, false, name);
    check_apart(*index, name, target, "target");
  }
  sizes[0] = rows.numel();
  check_like(values, "values", target, "target");
  check_sizes(values, "values", sizes);
  check_contiguous(values, "values");
  check_apart(values, "values", target, "target");

  const RowMemory memory(target);
  const int64_t size = target.element_size(), row_bytes = memory.elements * size;
  if (row_bytes == 0) return;
  char* const to = data_of<char>(target);
  const char* const from = const_data_of<char>(values);
  const int64_t least = ceil_div(kTaskBytes, row_bytes);

  if (stale) {
    const int64_t* const row = indices_of(*stale);
    torch::stable::parallel_for(0, stale->numel(), least, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) memset(to + row[i] * row_bytes, 0, row_bytes);
    });
  }
  const int64_t* const row = indices_of(rows);
  torch::stable::parallel_for(0, rows.numel(), least, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (memory.taps == 1) {
        memcpy(to + row[i] * row_bytes, from + i * row_bytes, row_bytes);
      } else {
        transpose_bytes(from + i * row_bytes, to + row[i] * row_bytes, memory.channels, memory.taps, size);
      }
    }
  });
}

}  // namespace
}  // namespace wuskern

STABLE_TORCH_LIBRARY_IMPL(wuskern_native, CPU, m) { m.impl("write_rows", TORCH_BOX(&wuskern::write_rows)); }
