// dY, gathered to its k chosen rows, as a matrix P, so that both gradients of a convolution of stride 1 are matrix
// products, dW = P^T X and dX = P W. P has a row for each pixel of the input and a column for each tap and chosen row:
// the element of dY that this tap connects with the pixel, zero outside. Taps run backwards, from the last of the
// kernel to the first: then what one pixel takes from one row of dY are neighbours in channels_last.
//
// P is made tile by tile. A tile's part of dY, with a border for the taps and zeros for padding, goes into a scratch
// that stays in a cache, from where every tap is a plain shift.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "../common/reduction.h"
#include "../torch/checks.h"

namespace wuskern {

struct Unfold {
  int64_t batch, height, width;                                       // of the input
  int64_t dy_height, dy_width;                                        // of dY
  int64_t batch_stride, channel_stride, height_stride, width_stride;  // of dY, in elements
  int64_t kernel_height, kernel_width, dilation_height, dilation_width;
  int64_t top, left;  // the pixel of dY that the last tap connects with pixel (0, 0)
  int64_t k;

  int64_t pixels() const { return height * width; }
  int64_t columns() const { return kernel_height * kernel_width * k; }
};

// `geometry`: of stride 1.
inline Unfold checked_unfold(const Tensor& dy, const Pair& size, const Geometry& geometry) {
  check_unfold(dy, size, geometry);
  const auto& [kernel, stride, padding, dilation, groups] = geometry;
  return {dy.size(0),
          size[0],
          size[1],
          dy.size(2),
          dy.size(3),
          dy.stride(0),
          dy.stride(1),
          dy.stride(2),
          dy.stride(3),
          kernel[0],
          kernel[1],
          dilation[0],
          dilation[1],
          padding[0] - (kernel[0] - 1) * dilation[0],
          padding[1] - (kernel[1] - 1) * dilation[1],
          dy.size(1)};
}

// A rectangle of the input, and the part of dY that it needs: `high` x `wide` pixels, the first at (y, x), which may
// lie outside.
struct Tile {
  int64_t image, first_row, first_column, rows, columns;
  int64_t y, x, high, wide;

  int64_t pixels() const { return rows * columns; }
};

// Tiles of about so many pixels: lines of the image, or parts of one, each of nearly the same size.
struct Tiling {
  Chunks rows, columns;

  Tiling(const Unfold& u, int64_t pixels)
      : rows(equal(u.height, ceil_div(pixels, u.width))), columns(equal(u.width, pixels)) {}

  // `total` in parts of about `size`
  static Chunks equal(int64_t total, int64_t size) {
    const int64_t count = std::max(int64_t{1}, (total + size / 2) / size);
    return {total, ceil_div(total, count)};
  }

  int64_t per_image() const { return rows.count() * columns.count(); }

  Tile tile(const Unfold& u, int64_t image, int64_t i) const {
    const int64_t row = i / columns.count(), column = i % columns.count();
    const int64_t first_row = rows.begin(row), first_column = columns.begin(column);
    const int64_t high = rows.end(row) - first_row, wide = columns.end(column) - first_column;
    return {image,
            first_row,
            first_column,
            high,
            wide,
            first_row + u.top,
            first_column + u.left,
            high + (u.kernel_height - 1) * u.dilation_height,
            wide + (u.kernel_width - 1) * u.dilation_width};
  }

  // Elements of dY that a tile needs at the most.
  int64_t scratch(const Unfold& u) const {
    const Tile largest = tile(u, 0, 0);
    return largest.high * largest.wide * u.k;
  }
};

// scratch[y * step_y + x * step_x + r * step_r] = dY there, for the tile; zeros outside
template <typename T>
void load_tile(const Unfold& u, const T* dy, const Tile& tile, T* scratch, int64_t step_y, int64_t step_x,
               int64_t step_r) {
  constexpr int64_t kLine = 16;  // elements
  const int64_t x_begin = std::clamp(-tile.x, int64_t{0}, tile.wide);
  const int64_t x_end = std::clamp(u.dy_width - tile.x, x_begin, tile.wide);
  if (tile.y < 0 || tile.y + tile.high > u.dy_height || x_begin > 0 || x_end < tile.wide) {
    memset(scratch, 0, tile.high * tile.wide * u.k * sizeof(T));
  }
  for (int64_t y = std::max(-tile.y, int64_t{0}); y < std::min(tile.high, u.dy_height - tile.y); ++y) {
    const T* const line = dy + tile.image * u.batch_stride + (tile.y + y) * u.height_stride + tile.x * u.width_stride;
    T* const target = scratch + y * step_y;
    if (u.channel_stride == 1 && step_r == 1 && step_x == u.k && u.width_stride == u.k) {
      if (x_end > x_begin) memcpy(target + x_begin * u.k, line + x_begin * u.k, (x_end - x_begin) * u.k * sizeof(T));
    } else if (u.channel_stride == 1 && u.width_stride != 1) {
      const int64_t block = step_x == 1 ? kLine : 1;  // a transposition writes whole lines of the cache
      for (int64_t x = x_begin; x < x_end; x += block) {
        const int64_t end = std::min(x + block, x_end);
        for (int64_t r = 0; r < u.k; ++r) {
          for (int64_t i = x; i < end; ++i) target[i * step_x + r * step_r] = line[i * u.width_stride + r];
        }
      }
    } else {
      for (int64_t r = 0; r < u.k; ++r) {
        const T* const from = line + r * u.channel_stride;
        T* const to = target + r * step_r;
        if (u.width_stride == 1 && step_x == 1) {
          if (x_end > x_begin) memcpy(to + x_begin, from + x_begin, (x_end - x_begin) * sizeof(T));
        } else {
          for (int64_t x = x_begin; x < x_end; ++x) to[x * step_x] = from[x * u.width_stride];
        }
      }
    }
  }
}

// out[pixel of the tile, tap, row]: rows of P, `step` apart
template <typename T>
void unfold_pixels_first(const Unfold& u, const T* dy, const Tile& tile, T* scratch, T* out, int64_t step) {
  const int64_t line = tile.wide * u.k;
  load_tile(u, dy, tile, scratch, line, u.k, int64_t{1});
  const bool neighbours = u.dilation_width == 1;  // all taps of one row of the kernel in one run
  const int64_t runs = neighbours ? 1 : u.kernel_width, run = neighbours ? u.kernel_width * u.k : u.k;
  for (int64_t i = 0; i < tile.rows; ++i) {
    for (int64_t j = 0; j < tile.columns; ++j, out += step) {
      T* target = out;
      for (int64_t tap_y = 0; tap_y < u.kernel_height; ++tap_y) {
        const T* const from = scratch + (i + tap_y * u.dilation_height) * line + j * u.k;
        for (int64_t tap_x = 0; tap_x < runs; ++tap_x, target += run) {
          memcpy(target, from + tap_x * u.dilation_width * u.k, run * sizeof(T));
        }
      }
    }
  }
}

// out[tap, row, pixel of the tile]: columns of P, `step` apart; the tile's lines are `line_step` apart
template <typename T>
void unfold_pixels_last(const Unfold& u, const T* dy, const Tile& tile, T* scratch, T* out, int64_t step,
                        int64_t line_step) {
  const int64_t plane = tile.high * tile.wide;
  load_tile(u, dy, tile, scratch, tile.wide, int64_t{1}, plane);
  const bool one_run = tile.wide == tile.columns && tile.columns == line_step;
  for (int64_t tap_y = 0; tap_y < u.kernel_height; ++tap_y) {
    for (int64_t tap_x = 0; tap_x < u.kernel_width; ++tap_x) {
      const T* from = scratch + tap_y * u.dilation_height * tile.wide + tap_x * u.dilation_width;
      for (int64_t r = 0; r < u.k; ++r, from += plane, out += step) {
        if (one_run) {
          memcpy(out, from, tile.pixels() * sizeof(T));
          continue;
        }
        for (int64_t i = 0; i < tile.rows; ++i) {
          memcpy(out + i * line_step, from + i * tile.wide, tile.columns * sizeof(T));
        }
      }
    }
  }
}

}  // namespace wuskern
