// Stands in for NVIDIA's header: binary16 by csrc/common/half.h.
#pragma once

#include "../../common/half.h"
#include "cuda_runtime.h"

struct __half {
  wuskern::Half raw;

  __half() = default;
  __half(float x) { wuskern::narrow(x, &raw); }
  __half(double x) : __half(static_cast<float>(x)) {}
  operator float() const { return wuskern::widen(raw); }
};

struct alignas(4) __half2 {
  __half x, y;
};

inline float __half2float(__half x) { return x; }
inline __half __float2half(float x) { return x; }
inline __half __float2half_rn(float x) { return x; }
inline __half2 __floats2half2_rn(float x, float y) { return {x, y}; }
inline __half2 __halves2half2(__half x, __half y) { return {x, y}; }
inline float2 __half22float2(__half2 v) { return {v.x, v.y}; }
