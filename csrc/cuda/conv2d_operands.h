// Where the tiles of a Conv2d's products come from, 8 neighbouring elements of 16 bits at a time, their addresses
// aligned to 16 bytes; and where those of dX go.
#pragma once

#include "linear_operands.h"

namespace wuskern {

// ---- dW ------------------------------------------------------------------------------------------------------------

// Images in [B, H, W, C], C elements next to each other; strides are in elements.
struct Images {
  int64_t image_stride, h_stride, w_stride;
  int height, width;
};

inline Images images_of(const Pixels& p) {
  return {p.image_stride, p.h_stride, p.w_stride, static_cast<int>(p.height), static_cast<int>(p.width)};
}

// A convolution's input under its kernel: a row for each output pixel, a column for each tap and channel of a group
// (channels a multiple of 8, the taps outside).
template <typename T>
struct PixelRows {
  const T* data;
  Images images;
  int64_t columns;
  Divisor channels, kernel_width;
  Divisor plane, out_width;  // of output pixels
  int stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;

  struct OfThread {
    const PixelRows& all;
    const T* channel;
    int tap_h, tap_w, end;
    __device__ __forceinline__ Chunk operator()(int row) const {
      const uint32_t pixel = row < end ? static_cast<uint32_t>(row) : 0;
      const uint32_t image = all.plane.quotient(pixel), rest = pixel - image * all.plane.value;
      const uint32_t y = all.out_width.quotient(rest), x = rest - y * all.out_width.value;
      const int h = static_cast<int>(y) * all.stride_h + tap_h, w = static_cast<int>(x) * all.stride_w + tap_w;
      const bool valid = row < end && static_cast<unsigned>(h) < static_cast<unsigned>(all.images.height) &&
                         static_cast<unsigned>(w) < static_cast<unsigned>(all.images.width);
      const Images& in = all.images;
      return {channel + (image * in.image_stride + h * in.h_stride + w * in.w_stride), valid ? 16 : 0};
    }
    template <int width>
    __device__ __forceinline__ void load(uint32_t tile, int depth) const {
      load_rows<width>(tile, depth, *this);
    }
  };
  template <int width>
  __device__ __forceinline__ OfThread at(int64_t offset, int64_t column, int, int end) const {
    const uint32_t tap = channels.quotient(static_cast<uint32_t>(column));
    const uint32_t i = kernel_width.quotient(tap), j = tap - i * kernel_width.value;
    return {*this, data + offset + (column - int64_t{tap} * channels.value),
            static_cast<int>(i) * dilation_h - padding_h, static_cast<int>(j) * dilation_w - padding_w,
            column < columns ? end : 0};
  }
};

template <typename T>
PixelRows<T> pixel_rows(const AlignedPixels& x, const RowSparseConv2d& conv) {
  return {x.as<T>(),
          images_of(x.pixels),
          x.width * conv.taps(),
          Divisor(x.width),
          Divisor(conv.w.taps),
          Divisor(conv.dy.height * conv.dy.width),
          Divisor(conv.dy.width),
          conv.h.stride,
          conv.w.stride,
          conv.h.padding,
          conv.w.padding,
          conv.h.dilation,
          conv.w.dilation};
}

// ---- dX ------------------------------------------------------------------------------------------------------------

// The input of a convolution as dX sees it: its pixels in phases.
struct Phases {
  Side h, w;
  int height, width;
  int64_t batch;
  Divisor plane, columns;  // pixels of one phase: of an image, of a line; some of them may lie outside

  // The place of pixel m of a phase, counted in pixels of the phase; image < 0 where it is outside.
  struct Pixel {
    int64_t image;
    int y, x;
  };
  __device__ __forceinline__ Pixel pixel(int64_t m, int phase_h, int phase_w) const {
    const uint32_t at = static_cast<uint32_t>(m), image = plane.quotient(at), rest = at - image * plane.value;
    const int y = static_cast<int>(columns.quotient(rest)),
              x = static_cast<int>(rest) - y * static_cast<int>(columns.value);
    const bool inside = image < batch && phase_h + y * h.stride < height && phase_w + x * w.stride < width;
    return {inside ? static_cast<int64_t>(image) : -1, y, x};
  }
};

// Input pixels of a phase, along each side of an image.
struct PhaseSize {
  int64_t height, width;
};

inline PhaseSize phase_size(const RowSparseConv2d& conv) {
  return {ceil_div(conv.input.height, conv.h.stride), ceil_div(conv.input.width, conv.w.stride)};
}

inline Phases phases_of(const RowSparseConv2d& conv) {
  const auto [height, width] = phase_size(conv);
  return {conv.h,
          conv.w,
          static_cast<int>(conv.input.height),
          static_cast<int>(conv.input.width),
          conv.input.batch,
          Divisor(height * width),
          Divisor(width)};
}

// dy under the kernel of a convolution as dX sees it: a row for each input pixel of a phase, a term for each tap of the
// phase and each row of dy (k of them, filled up to a multiple of 8, the taps outside).
template <typename T>
struct PhasePixels {
  const T* data;
  Images images;  // dy
  Phases phases;
  Divisor k;
  int rows;  // of these terms

  struct Term {
    int64_t offset;
    int y, x, bytes;
  };
  struct OfThread {
    const PhasePixels& all;
    PhaseTaps taps_h, taps_w;
    int phase_h, phase_w;
    int step_h, step_w, end;
    const T* pixel[kRowsOfThread];  // where output pixel (y, x) lies, inside or not; null where there is no input pixel
    int y[kRowsOfThread], x[kRowsOfThread];

    __device__ __forceinline__ Term at(int term) const {
      const Phases& p = all.phases;
      const uint32_t at = term < end ? static_cast<uint32_t>(term) : 0, tap = all.k.quotient(at);
      const int a = static_cast<int>(tap) / taps_w.count, b = static_cast<int>(tap) - a * taps_w.count;
      const int out_y = p.h.output(taps_h.first + a * step_h, phase_h);
      const int out_x = p.w.output(taps_w.first + b * step_w, phase_w);
      const int row = static_cast<int>(at - tap * all.k.value);
      return {out_y * all.images.h_stride + out_x * all.images.w_stride + row, out_y, out_x,
              term < end ? bytes_of(all.rows - row) : 0};
    }
    __device__ __forceinline__ Chunk operator()(int pass, const Term& term) const {
      const int h = y[pass] + term.y, w = x[pass] + term.x;
      const bool valid = pixel[pass] != nullptr &&
                         static_cast<unsigned>(h) < static_cast<unsigned>(all.images.height) &&
                         static_cast<unsigned>(w) < static_cast<unsigned>(all.images.width);
      return {pixel[pass] + term.offset, valid ? term.bytes : 0};
    }
  };
  // The thread's rows from pixel `first` of a phase, dy from `offset` elements on.
  __device__ __forceinline__ OfThread at(int64_t offset, int64_t first, int phase_h, int phase_w,
                                         const PhaseTaps& taps_h, const PhaseTaps& taps_w) const {
    OfThread mine{*this, taps_h, taps_w, phase_h, phase_w, phases.h.step(), phases.w.step()};
    mine.end = taps_h.count * taps_w.count * static_cast<int>(k.value);
#pragma unroll
    for (int pass = 0; pass < kRowsOfThread; ++pass) {
      const Phases::Pixel at = phases.pixel(first + row_of(pass), phase_h, phase_w);
      mine.y[pass] = at.y;
      mine.x[pass] = at.x;
      mine.pixel[pass] = at.image < 0 ? nullptr
                                      : data + offset + at.image * images.image_stride + at.y * images.h_stride +
                                            at.x * images.w_stride;
    }
    return mine;
  }
};

// dX of a convolution: where a block's tile comes from and goes to. The weight is copied by tap.
template <typename T>
struct Conv2dDgrad {
  PhasePixels<T> dy;
  MatrixRows<T> weight;
  int64_t dy_group, weight_group;  // elements from a group to the next
  DgradSchedule schedule;
  DgradOutput<T> output;

  // Of a sum, on average over the phases.
  int64_t terms() const {
    const Side &h = dy.phases.h, &w = dy.phases.w;
    return int64_t{h.taps} * w.taps * dy.k.value / (int64_t{h.stride} * w.stride);
  }

  struct OfBlock {
    const Conv2dDgrad& all;
    int phase_h, phase_w;
    const typename PhasePixels<T>::OfThread dy;
    typename MatrixRows<T>::OfThread weight;
    int64_t first;
    int end;

    // Where m of the tile lies in dX; negative where there is no such pixel.
    __device__ __forceinline__ int64_t place(int m) const {
      const Phases& phases = all.dy.phases;
      const Phases::Pixel pixel = phases.pixel(first + m, phase_h, phase_w);
      if (pixel.image < 0) return -1;
      return pixel.image * all.output.image_stride + (phase_h + pixel.y * phases.h.stride) * all.output.h_stride +
             (phase_w + pixel.x * phases.w.stride) * all.output.w_stride;
    }
  };
  template <int n>
  __device__ __forceinline__ OfBlock at(const DgradSchedule::Place& place) const {
    const Phases& phases = dy.phases;
    const int phase_h = static_cast<int>(place.phase) / phases.w.stride;
    const int phase_w = static_cast<int>(place.phase) % phases.w.stride;
    const PhaseTaps of_h = phases.h.taps_of(phase_h), of_w = phases.w.taps_of(phase_w);
    const int64_t first = place.pixel_block * kTileM, column = place.column_block * n + column_of<n>();
    const int end = of_h.count * of_w.count * static_cast<int>(dy.k.value);
    const int64_t before = (int64_t{of_h.before} * phases.w.taps + int64_t{of_h.count} * of_w.before) * dy.k.value;
    return {*this,
            phase_h,
            phase_w,
            dy.at(place.group * dy_group, first, phase_h, phase_w, of_h, of_w),
            weight.template at<n>(place.group * weight_group + before * weight.stride, column, 0, end),
            first,
            end};
  }
};

}  // namespace wuskern
