// Elements that one instruction loads or stores: up to 16 bytes of them, in order.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <initializer_list>
#include <type_traits>

#include "../common/half.h"
#include "../torch/stable_abi.h"

namespace wuskern {

template <typename T>
using Accumulator = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <typename T>
constexpr ScalarType kAccumulatorType = std::is_same_v<T, double> ? ScalarType::Double : ScalarType::Float;

template <typename T, int vec>
struct alignas(sizeof(T) * vec) Vector {
  T at[vec];
};

// One instruction each. Left to itself the compiler may read a vector element by element.
template <int vec, typename T>
__device__ __forceinline__ Vector<T, vec> load_vector(const T* p) {
  if constexpr (sizeof(Vector<T, vec>) == sizeof(uint4)) {
    return bit_cast<Vector<T, vec>>(*reinterpret_cast<const uint4*>(p));
  } else {
    return {{*p}};
  }
}

// Of memory that the kernel does not write.
template <int vec, typename T>
__device__ __forceinline__ Vector<T, vec> load_constant_vector(const T* p) {
  if constexpr (sizeof(Vector<T, vec>) == sizeof(uint4)) {
    return bit_cast<Vector<T, vec>>(__ldg(reinterpret_cast<const uint4*>(p)));
  } else {
    return {{*p}};
  }
}

template <int vec, typename T>
__device__ __forceinline__ void store_vector(T* p, const Vector<T, vec>& vector) {
  if constexpr (sizeof(Vector<T, vec>) == sizeof(uint4)) {
    __stwb(reinterpret_cast<uint4*>(p), bit_cast<uint4>(vector));  // an assignment of zeros becomes four stores
  } else {
    *p = vector.at[0];
  }
}

template <typename T>
constexpr int kVec = 16 / sizeof(T);

inline bool aligned_to_16(std::initializer_list<const void*> pointers) {
  for (const void* p : pointers) {
    if (reinterpret_cast<uintptr_t>(p) % 16 != 0) return false;
  }
  return true;
}

// Whether vectors of 16 bytes start at the pointer and at every multiple of these numbers of elements.
template <typename T>
bool aligned(const T* pointer, std::initializer_list<int64_t> multiples) {
  for (const int64_t m : multiples) {
    if (m % kVec<T> != 0) return false;
  }
  return aligned_to_16({pointer});
}

}  // namespace wuskern
