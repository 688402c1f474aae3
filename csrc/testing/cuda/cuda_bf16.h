// Stands in for NVIDIA's header: bfloat16 by csrc/common/half.h.
#pragma once

#include "../../common/half.h"
#include "cuda_runtime.h"

struct __nv_bfloat16 {
  wuskern::BFloat16 raw;

  __nv_bfloat16() = default;
  __nv_bfloat16(float x) { wuskern::narrow(x, &raw); }
  __nv_bfloat16(double x) : __nv_bfloat16(static_cast<float>(x)) {}
  operator float() const { return wuskern::widen(raw); }
};

struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};

inline float __bfloat162float(__nv_bfloat16 x) { return x; }
inline __nv_bfloat16 __float2bfloat16(float x) { return x; }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return x; }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {x, y}; }
inline float2 __bfloat1622float2(__nv_bfloat162 v) { return {v.x, v.y}; }
