// Stands in for NVIDIA's header of this name where wuskern's .cu files are compiled for the CPU.
#pragma once

#include <math.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>

#include "../../torch/stable_abi.h"
#include "emulation.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)
#define __shared__ static thread_local  // emulation.cpp poisons it before each block

using std::max;
using std::min;

// ---- vectors ------------------------------------------------------------------------------------------------------

#define WUSKERN_VECTORS(NAME, TYPE, BYTES)                                 \
  struct alignas(2 * BYTES) NAME##2 { TYPE x, y; };                        \
  struct alignas(BYTES < 4 ? 4 * BYTES : 16) NAME##4 { TYPE x, y, z, w; }; \
  inline NAME##2 make_##NAME##2(TYPE x, TYPE y) { return {x, y}; }         \
  inline NAME##4 make_##NAME##4(TYPE x, TYPE y, TYPE z, TYPE w) { return {x, y, z, w}; }
WUSKERN_VECTORS(int, int, 4)
WUSKERN_VECTORS(uint, unsigned, 4)
WUSKERN_VECTORS(float, float, 4)
WUSKERN_VECTORS(double, double, 8)
WUSKERN_VECTORS(ushort, unsigned short, 2)
#undef WUSKERN_VECTORS

template <typename T>
T __ldg(const T* p) {
  if (reinterpret_cast<uintptr_t>(p) % alignof(T)) wuskern::emulation::fail("a load that is not aligned");
  return *p;
}
template <typename T>
T __ldcs(const T* p) {
  return __ldg(p);
}
template <typename T>
T __ldcg(const T* p) {
  return __ldg(p);
}
template <typename T>
void __stwb(T* p, T value) {
  if (reinterpret_cast<uintptr_t>(p) % alignof(T)) wuskern::emulation::fail("a store that is not aligned");
  *p = value;
}

// ---- bits ---------------------------------------------------------------------------------------------------------

inline int __popc(unsigned x) { return std::popcount(x); }
inline int __popcll(unsigned long long x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
inline int __clzll(long long x) { return std::countl_zero(static_cast<unsigned long long>(x)); }
inline int __ffs(int x) { return x ? std::countr_zero(static_cast<unsigned>(x)) + 1 : 0; }
inline int __ffsll(long long x) { return x ? std::countr_zero(static_cast<unsigned long long>(x)) + 1 : 0; }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }

// ---- atomics: one thread runs at a time ---------------------------------------------------------------------------

#define WUSKERN_ATOMIC(NAME, EXPRESSION)            \
  template <typename T>                             \
  T NAME(T* place, std::type_identity_t<T> value) { \
    const T old = *place;                           \
    *place = EXPRESSION;                            \
    return old;                                     \
  }
WUSKERN_ATOMIC(atomicAdd, old + value)
WUSKERN_ATOMIC(atomicMax, std::max(old, value))
WUSKERN_ATOMIC(atomicMin, std::min(old, value))
WUSKERN_ATOMIC(atomicAnd, old& value)
WUSKERN_ATOMIC(atomicOr, old | value)
WUSKERN_ATOMIC(atomicExch, value)
WUSKERN_ATOMIC(atomicInc, old >= value ? 0 : old + 1)
#undef WUSKERN_ATOMIC

template <typename T>
T atomicCAS(T* place, std::type_identity_t<T> compared, std::type_identity_t<T> value) {
  const T old = *place;
  if (old == compared) *place = value;
  return old;
}

inline void __threadfence() {}
inline void __threadfence_block() {}
[[noreturn]] inline void __trap() { wuskern::emulation::fail("__trap"); }

#include "warp.h"

// ---- the runtime --------------------------------------------------------------------------------------------------

using cudaStream_t = struct CUstream_st*;
enum cudaError_t { cudaSuccess = 0 };
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone, cudaStreamCaptureStatusActive };
inline cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = wuskern::emulation::settings.capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
inline cudaError_t cudaStreamGetId(cudaStream_t, unsigned long long* id) {
  *id = wuskern::emulation::settings.stream;
  return cudaSuccess;
}
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrComputeCapabilityMinor
};
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int) {
  return cudaSuccess;
}
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};
template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments... arguments) {
  wuskern::emulation::run(reinterpret_cast<const void*>(kernel), config->gridDim, config->blockDim,
                          config->dynamicSmemBytes, [&] { kernel(static_cast<Parameters>(arguments)...); });
  return cudaSuccess;
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t) {
  memset(memory, value, bytes);
  return cudaSuccess;
}
