// A tile of c, up to 8 x 48, stays in registers while it walks along the depth: of 32 registers of AVX-512 it takes 24.
// Now and then it joins c in memory: sums of long chains would lose digits. Compiled with contraction: a product and
// its sum are one fused operation.
#include "product_kernels.h"

#include "lanes.h"

namespace wuskern {
namespace {

constexpr int64_t kWide = 16;   // floats of a vector
constexpr int64_t kChain = 32;  // products that are added one to the next

// The rows of c from `first` on.
template <int rows, int vectors>
WUSKERN_INLINE void multiply_tile(const MatrixProduct product, int64_t first) {
  const auto [_, columns, depth, a_of_all, a_row, a_column, b_of_all, b_row, c_of_all, c_row, adds] = product;
  const float *a = a_of_all + first * a_row, *b = b_of_all;
  float* const c = c_of_all + first * c_row;
  bool adding = adds;
  for (int64_t done = 0; done < depth; done += kChain, adding = true) {
    Floats sums[rows][vectors] = {};
    const int64_t chain = depth - done < kChain ? depth - done : kChain;
    for (int64_t l = 0; l < chain; ++l, a += a_column, b += b_row) {
      Floats line[vectors];
      for (int v = 0; v < vectors; ++v) line[v] = load(b + v * kWide);
      for (int i = 0; i < rows; ++i) {
        const float factor = a[i * a_row];
        for (int v = 0; v < vectors; ++v) sums[i][v] += factor * line[v];
      }
    }
    for (int i = 0; i < rows; ++i) {
      for (int v = 0; v < vectors; ++v) {
        float* const target = c + i * c_row + v * kWide;
        if (adding) sums[i][v] += load(target);
        memcpy(target, &sums[i][v], sizeof(Floats));
      }
    }
  }
}

template <int vectors>
void multiply_columns(const MatrixProduct& product) {
  const int64_t rows = product.rows;
  int64_t i = 0;
  for (; i + 8 <= rows; i += 8) multiply_tile<8, vectors>(product, i);
  if (rows - i >= 4) {
    multiply_tile<4, vectors>(product, i);
    i += 4;
  }
  for (; i < rows; ++i) multiply_tile<1, vectors>(product, i);
}

void multiply(MatrixProduct product) {
  while (product.columns > 0) {
    const int64_t columns = product.columns;
    const int64_t vectors = columns == 4 * kWide || columns == 2 * kWide ? 2 : columns == kWide ? 1 : 3;
    const auto part = vectors == 3 ? multiply_columns<3> : vectors == 2 ? multiply_columns<2> : multiply_columns<1>;
    part(product);
    product.b += vectors * kWide;
    product.c += vectors * kWide;
    product.columns -= vectors * kWide;
  }
}

}  // namespace

namespace WUSKERN_CAPABILITY {

ProductKernels product_kernels() { return {multiply}; }

}  // namespace WUSKERN_CAPABILITY
}  // namespace wuskern
