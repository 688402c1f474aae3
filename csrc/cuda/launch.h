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

}  // namespace wuskern
