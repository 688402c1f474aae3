// Where the tiles of a Linear's products come from, 8 neighbouring elements of 16 bits at a time, their addresses
// aligned to 16 bytes; and where those of dX go.
#pragma once

#include "aligned_copies.h"
#include "tensor_cores.h"

namespace wuskern {

// A matrix with a row for each term of the sums: tokens of x, tokens of a compact dy, rows of a copied weight.
template <typename T>
struct MatrixRows {
  const T* data;
  int64_t stride, columns;  // the stride is a multiple of 8

  // The thread's chunks of the rows of a stage, then of the next one: a pointer steps over them, and is never
  // multiplied.
  struct OfThread {
    const T* next;
    int64_t step;  // from a row of this thread to its next
    int bytes, end;

    template <int width>
    __device__ __forceinline__ void load(uint32_t tile, int depth) {
      constexpr int rows = rows_at_once(width);
      const uint32_t to = tile + chunk_place(first_row<width>(), column_of<width>() / 8);
      const int left = end - depth - first_row<width>();
      const bool whole = end - depth >= kTileDepth;  // of all threads: most stages are
      if (whole) {
#pragma unroll
        for (int row = 0; row < kTileDepth; row += rows, next += step) copy_16_async(to + row * kRowBytes, next, bytes);
      } else {
#pragma unroll
        for (int row = 0; row < kTileDepth; row += rows, next += step) {
          copy_16_async(to + row * kRowBytes, next, row < left ? bytes : 0);
        }
      }
    }
  };
  // The thread's chunk of rows from `begin` up to `end`, `column` in a part that starts `offset` elements later.
  template <int width>
  __device__ __forceinline__ OfThread at(int64_t offset, int64_t column, int begin, int end) const {
    return {data + offset + column + (begin + first_row<width>()) * stride, rows_at_once(width) * stride,
            bytes_of(static_cast<int>(columns - column)), end};
  }
};

// The chosen rows of a weight.
template <typename T>
struct GatheredRows {
  const T* data;
  const int64_t* rows;
  int64_t stride, columns;  // both are multiples of 8

  struct OfThread {
    const T* column;
    const int64_t* rows;
    int64_t stride;
    int end;
    __device__ __forceinline__ Chunk operator()(int row) const {
      const bool valid = row < end;
      return {column + (valid ? __ldg(rows + row) : 0) * stride, valid ? 16 : 0};
    }
    template <int width>
    __device__ __forceinline__ void load(uint32_t tile, int depth) const {
      load_rows<width>(tile, depth, *this);
    }
  };
  template <int width>
  __device__ __forceinline__ OfThread at(int64_t offset, int64_t column, int, int end) const {
    return {data + offset + column, rows, stride, column < columns ? end : 0};
  }
};

// All tokens of x or dy, one by one.
template <typename T>
MatrixRows<T> matrix_rows(const AlignedPixels& tokens) {
  return {tokens.as<T>(), one_by_one(tokens.pixels).image_stride, tokens.width};
}

// A matrix with a row for each m: tokens of a compact dy.
template <typename T>
struct MatrixColumns {
  const T* data;
  int64_t stride, rows;

  struct OfThread {
    const T* row[kRowsOfThread];
    bool valid[kRowsOfThread];
    int end;
    struct Term {
      int first, bytes;
    };
    __device__ __forceinline__ Term at(int term) const { return {term, bytes_of(end - term)}; }
    __device__ __forceinline__ Chunk operator()(int pass, const Term& term) const {
      return {row[pass] + term.first, valid[pass] ? term.bytes : 0};
    }
  };
  __device__ __forceinline__ OfThread at(int64_t first, int end) const {
    OfThread mine;
    mine.end = end;
#pragma unroll
    for (int pass = 0; pass < kRowsOfThread; ++pass) {
      const int64_t m = first + row_of(pass);
      mine.valid[pass] = m < rows;
      mine.row[pass] = data + m * stride;
    }
    return mine;
  }
};

// Where dX lies: strides in elements.
template <typename T>
struct DgradOutput {
  T* dx;
  int64_t image_stride, channel_stride, h_stride, w_stride;
  int64_t channels;  // of a group
  bool in_eights;    // whether 8 neighbouring channels can be written at once
};

// dX of a Linear, or of a convolution that is one: where a block's tile comes from and goes to. Tokens are images.
template <typename T>
struct LinearDgrad {
  MatrixColumns<T> dy;
  GatheredRows<T> weight;
  int k;
  DgradSchedule schedule;
  DgradOutput<T> output;

  int64_t terms() const { return in_eights(k); }

  struct OfBlock {
    const LinearDgrad& all;
    const typename MatrixColumns<T>::OfThread dy;
    typename GatheredRows<T>::OfThread weight;
    int64_t first;
    int end;

    // Where m of the tile lies in dX; negative where there is no such token.
    __device__ __forceinline__ int64_t place(int m) const {
      return first + m < all.dy.rows ? (first + m) * all.output.image_stride : -1;
    }
  };
  template <int n>
  __device__ __forceinline__ OfBlock at(const DgradSchedule::Place& place) const {
    const int64_t first = place.pixel_block * kTileM, column = place.column_block * n + column_of<n>();
    return {*this, dy.at(first, k), weight.template at<n>(0, column, 0, k), first, k};
  }
};

}  // namespace wuskern
