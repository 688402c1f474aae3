// How kernels are launched, and what every launch needs.
#pragma once

#include <cuda_runtime.h>

#include <atomic>
#include <utility>

#include "../torch/tensors.h"

namespace wuskern {

constexpr int64_t kMostBlocks = (int64_t{1} << 31) - 1;

// Where an op runs: on the device of one of its tensors, which is the current one as long as this lives.
class Context {
 public:
  explicit Context(const Tensor& on) : like(on), device_(on.get_device_index()), guard_(device_) {
    void* current = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_, &current));
    stream = static_cast<cudaStream_t>(current);
  }

  int32_t device() const { return device_; }

  const Tensor& like;  // what new tensors take after
  cudaStream_t stream;

  // Streaming multiprocessors, asked for once per device.
  int64_t processors() const {
    constexpr int kDevices = 64;
    static std::atomic<int> known[kDevices];
    int count = device_ < kDevices ? known[device_].load(std::memory_order_relaxed) : 0;
    if (count == 0) {
      count = attribute(cudaDevAttrMultiProcessorCount);
      if (device_ < kDevices) known[device_].store(count, std::memory_order_relaxed);
    }
    return count;
  }

  // 10 * major + minor.
  int compute_capability() const {
    return 10 * attribute(cudaDevAttrComputeCapabilityMajor) + attribute(cudaDevAttrComputeCapabilityMinor);
  }

 private:
  int attribute(cudaDeviceAttr which) const {
    int value = 0;
    STD_CUDA_CHECK(cudaDeviceGetAttribute(&value, which, device_));
    return value;
  }

  int32_t device_;
  torch::stable::accelerator::DeviceGuard guard_;
};

// So many blocks of threads, which a grid holds along its first dimension.
inline unsigned grid_of(int64_t blocks) {
  STD_TORCH_CHECK(blocks <= kMostBlocks, "expected a problem of fewer than 2^31 blocks of threads, got ", blocks);
  return static_cast<unsigned>(blocks);
}

// Every launch; `shared_bytes`: of dynamic shared memory, for each block.
template <typename... Parameters, typename... Arguments>
void launch(const Context& context, void (*kernel)(Parameters...), dim3 blocks, dim3 threads, size_t shared_bytes,
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
  config.stream = context.stream;
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
