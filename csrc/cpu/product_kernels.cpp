// A tile of c, up to 8 x 48, stays in registers while it walks along the depth: of 32 registers of AVX-512 it takes 24.
// Now and then it joins c in memory: sums of long chains would lose digits. Compiled with contraction: a product and
// its sum are one fused operation.
#include "product_kernels.h"

#include "lanes.h"

namespace wuskern {
namespace {

constexpr int64_t kWide = 16;   // floats of a vector
constexpr int64_t kChain = 32;  // products that are added one to the next

template <int rows, int vectors>
WUSKERN_INLINE void multiply_tile(int64_t depth, const float* a, int64_t a_row, int64_t a_column, const float* b,
                                  int64_t b_row, float* c, int64_t c_row, bool adding) {
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
void multiply_columns(int64_t rows, int64_t depth, const float* a, int64_t a_row, int64_t a_column, const float* b,
                      int64_t b_row, float* c, int64_t c_row, bool adding) {
  int64_t i = 0;
  for (; i + 8 <= rows; i += 8) {
    multiply_tile<8, vectors>(depth, a + i * a_row, a_row, a_column, b, b_row, c + i * c_row, c_row, adding);
  }
  if (rows - i >= 4) {
    multiply_tile<4, vectors>(depth, a + i * a_row, a_row, a_column, b, b_row, c + i * c_row, c_row, adding);
    i += 4;
  }
  for (; i < rows; ++i) {
    multiply_tile<1, vectors>(depth, a + i * a_row, a_row, a_column, b, b_row, c + i * c_row, c_row, adding);
  }
}

void multiply(int64_t rows, int64_t columns, int64_t depth, const float* a, int64_t a_row, int64_t a_column,
              const float* b, int64_t b_row, float* c, int64_t c_row, bool adding) {
  while (columns > 0) {
    const int64_t vectors = columns == 4 * kWide || columns == 2 * kWide ? 2 : columns == kWide ? 1 : 3;
    const auto part = vectors == 3 ? multiply_columns<3> : vectors == 2 ? multiply_columns<2> : multiply_columns<1>;
    part(rows, depth, a, a_row, a_column, b, b_row, c, c_row, adding);
    b += vectors * kWide;
    c += vectors * kWide;
    columns -= vectors * kWide;
  }
}

}  // namespace

namespace WUSKERN_CAPABILITY {

ProductKernels product_kernels() { return {multiply}; }

}  // namespace WUSKERN_CAPABILITY
}  // namespace wuskern
