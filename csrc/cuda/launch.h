// What every launcher asks of the device.
#pragma once

#include <cuda_runtime.h>

#include <atomic>
#include <utility>

#include "../checks.h"

namespace wuskern {

constexpr int64_t kMostBlocks = (int64_t{1} << 31) - 1;

inline cudaStream_t current_stream(int32_t device) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

// Streaming multiprocessors, asked for once per device.
inline int64_t processor_count(int32_t device) {
  constexpr int kDevices = 64;
  static std::atomic<int> known[kDevices];
  int count = device < kDevices ? known[device].load(std::memory_order_relaxed) : 0;
  if (count == 0) {
    STD_CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
    if (device < kDevices) known[device].store(count, std::memory_order_relaxed);
  }
  return count;
}

// 10 * major + minor.
inline int compute_capability(int32_t device) {
  int major = 0, minor = 0;
  STD_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  STD_CUDA_CHECK(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
  return 10 * major + minor;
}

// So many blocks of threads, which a grid holds along its first dimension.
inline unsigned grid_of(int64_t blocks) {
  STD_TORCH_CHECK(blocks <= kMostBlocks, "expected a problem of fewer than 2^31 blocks of threads, got ", blocks);
  return static_cast<unsigned>(blocks);
}

// Every launch; `shared_bytes`: of dynamic shared memory, for each block.
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 blocks, dim3 threads, size_t shared_bytes, cudaStream_t stream,
            Arguments&&... arguments) {
  constexpr size_t kWithoutAsking = 32 * 1024;  // 48 KiB, less 16 for static shared memory
  if (shared_bytes > kWithoutAsking) {
    STD_CUDA_CHECK(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)));
  }
  cudaLaunchConfig_t config{};
  config.gridDim = blocks;
  config.blockDim = threads;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  STD_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...));
}

// A block's dynamic shared memory, aligned to 128 bytes. WUSKERN_EMULATED: on the CPU, in tests (csrc/testing/cuda).
__device__ __forceinline__ void* dynamic_shared() {
#ifdef WUSKERN_EMULATED
  return emulation::dynamic_shared_memory();
#else
  extern __shared__ __align__(128) unsigned char memory[];
  return memory;
#endif
}

}  // namespace wuskern
