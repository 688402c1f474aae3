// unfold_gradient on the CPU: P (unfold.h) in memory, for a library's matrix product.
#include <memory>

#include "unfold.h"

namespace wuskern {
namespace {

constexpr int64_t kTilePixels = 512;
constexpr int64_t kTaskElements = 16384;  // less is not worth another thread

enum Order : int64_t { kPixelsFirst = 0, kPixelsLast = 1, kPixelsLastByImage = 2 };

template <typename T>
void unfold(const Unfold& u, int64_t order, const T* dy, T* out) {
  const int64_t pixels = u.pixels(), columns = u.columns();
  const bool by_image = order == kPixelsLastByImage;
  const Tiling tiling(u, kTilePixels);
  const int64_t task = std::min(pixels, kTilePixels) * columns, scratch_size = tiling.scratch(u);
  torch::stable::parallel_for(
      0, u.batch * tiling.per_image(), ceil_div(kTaskElements, task), [&](int64_t begin, int64_t end) {
        const std::unique_ptr<T[]> scratch(new T[scratch_size]);
        for (int64_t i = begin; i < end; ++i) {
          const Tile tile = tiling.tile(u, i / tiling.per_image(), i % tiling.per_image());
          const int64_t pixel = tile.first_row * u.width + tile.first_column;
          if (order == kPixelsFirst) {
            unfold_pixels_first(u, dy, tile, scratch.get(), out + (tile.image * pixels + pixel) * columns, columns);
          } else {
            unfold_pixels_last(u, dy, tile, scratch.get(), out + tile.image * (by_image ? columns : 1) * pixels + pixel,
                               by_image ? pixels : u.batch * pixels, u.width);
          }
        }
      });
}

// The same of a 1x1 kernel where each pixel's k values are neighbours: a transposition.
template <typename T>
void transpose(const Unfold& u, const T* dy, T* out) {
  constexpr int64_t kPixels = 64, kRows = 16;  // a block of lines of the cache, on both sides
  const Chunks blocks{u.width, kPixels};
  torch::stable::parallel_for(0, blocks.count(), ceil_div(kTaskElements, kPixels * u.k),
                              [&](int64_t begin, int64_t end) {
                                for (int64_t block = begin; block < end; ++block) {
                                  for (int64_t first = 0; first < u.k; first += kRows) {
                                    for (int64_t r = first; r < std::min(first + kRows, u.k); ++r) {
                                      for (int64_t i = blocks.begin(block); i < blocks.end(block); ++i)
                                        out[r * u.width + i] = dy[i * u.width_stride + r];
                                    }
                                  }
                                }
                              });
}

// A 1x1 kernel has no border: what is one run of pixels may be tiled as one.
void merge_pixels(Unfold& u, int64_t order) {
  if (u.kernel_height * u.kernel_width != 1 || u.top != 0 || u.left != 0) return;
  if (u.height == 1 || u.height_stride == u.width * u.width_stride) {
    u.width = u.dy_width = u.height * u.width;
    u.height = u.dy_height = 1;
    if (order != kPixelsLastByImage && (u.batch == 1 || u.batch_stride == u.width * u.width_stride)) {
      u.width = u.dy_width = u.batch * u.width;
      u.batch = 1;
    }
  }
}

Tensor unfold_gradient(Tensor dy, Pair input_size, Pair kernel_size, Pair padding, Pair dilation, int64_t order) {
  check_dtype(dy, "dy");
  check_order(order);
  Unfold u = checked_unfold(dy, input_size, {kernel_size, {1, 1}, padding, dilation});
  Tensor out = order == kPixelsFirst  ? new_tensor(dy, {u.batch * u.pixels(), u.columns()})
               : order == kPixelsLast ? new_tensor(dy, {u.columns(), u.batch * u.pixels()})
                                      : new_tensor(dy, {u.batch, u.columns(), u.pixels()});
  if (out.numel() == 0) return out;
  merge_pixels(u, order);
  for_dtype<uint16_t, uint16_t>(dy.scalar_type(), [&]<typename T>(std::type_identity<T>) {
    const bool transposes = order == kPixelsLast && u.columns() == u.k && u.batch * u.height == 1 &&
                            u.dy_height == u.height && u.dy_width == u.width && u.channel_stride == 1;
    if (transposes) return transpose(u, const_data_of<T>(dy), data_of<T>(out));
    unfold(u, order, const_data_of<T>(dy), data_of<T>(out));
  });
  return out;
}

}  // namespace
}  // namespace wuskern

STABLE_TORCH_LIBRARY_IMPL(wuskern_native, CPU, m) { m.impl("unfold_gradient", TORCH_BOX(&wuskern::unfold_gradient)); }
