// The inner loops of matrix products in float32. product_kernels.cpp is compiled once for each instruction set, into a
// namespace of its name.
#pragma once

#include <cstdint>

#include "capability.h"

namespace wuskern {

// c[i, j] = (adding: c[i, j] +) the sum over l of a[i * a_row + l * a_column] * b[l, j], for i < rows, j < columns, l <
// depth; columns a multiple of 16, rows of b and c so many elements apart.
struct MatrixProduct {
  int64_t rows, columns, depth;
  const float* a;
  int64_t a_row, a_column;
  const float* b;
  int64_t b_row;
  float* c;
  int64_t c_row;
  bool adding;
};

struct ProductKernels {
  void (*multiply)(MatrixProduct product);
};

#define WUSKERN_DECLARE(NAME)       \
  namespace NAME {                  \
  ProductKernels product_kernels(); \
  }
WUSKERN_FOR_EACH_CAPABILITY(WUSKERN_DECLARE)
#undef WUSKERN_DECLARE

}  // namespace wuskern
