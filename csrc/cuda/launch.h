// What every launcher asks of the device.
#pragma once

#include <cuda_runtime.h>

#include <atomic>

#include "../stable_abi.h"

namespace wuskern {

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

// kernel(arguments...) on a stream, with its check. More than 48 KiB of shared memory has to be asked for.
template <typename... P, typename... A>
void launch(void (*kernel)(P...), dim3 blocks, dim3 threads, size_t shared_bytes, cudaStream_t stream,
            A&&... arguments) {
  if (shared_bytes > 48 * 1024) {
    STD_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        static_cast<int>(shared_bytes)));
  }
  kernel<<<blocks, threads, shared_bytes, stream>>>(std::forward<A>(arguments)...);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace wuskern
