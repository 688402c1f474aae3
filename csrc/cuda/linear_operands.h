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

  struct OfThread {
    const T* column;
    int64_t stride;
    int bytes, end;
    __device__ __forceinline__ Chunk operator()(int row) const {
      return {column + row * stride, row < end ? bytes : 0};
    }
  };
  // The thread's chunk of rows up to `end`, `column` in a part that starts `offset` elements later.
  __device__ __forceinline__ OfThread at(int64_t offset, int64_t column, int end) const {
    return {data + offset + column, stride, bytes_of(columns - column), end};
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
  };
  __device__ __forceinline__ OfThread at(int64_t offset, int64_t column, int end) const {
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
    const typename GatheredRows<T>::OfThread weight;
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
    return {*this, dy.at(first, k), weight.at(0, column, k), first, k};
  }
};

}  // namespace wuskern
