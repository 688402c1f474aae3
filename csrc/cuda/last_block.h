// The last block of a launch to arrive at a counter: it sees what the others have written before, and adds that up,
// where else a launch of its own would.
//
// Counters are zero before a launch, and again behind it: whoever arrives last sets its counter back. They belong to
// one stream, whose launches follow each other. A graph that is captured may be replayed beside any stream: a call in
// it gets counters of its own, and a node that zeroes them.
#pragma once

#include <map>
#include <mutex>
#include <utility>

#include "launch.h"

namespace wuskern {

constexpr int64_t kKeptCounters = 16384;  // of a stream: 64 KiB

inline Tensor zeroed_counters(const Context& context, int64_t count) {
  const auto made = [&](int64_t n) { return torch::stable::new_zeros(context.like, {n}, ScalarType::Int); };
  cudaStreamCaptureStatus status;
  STD_CUDA_CHECK(cudaStreamIsCapturing(context.stream, &status));
  if (status != cudaStreamCaptureStatusNone || count > kKeptCounters) return made(count);

  unsigned long long stream = 0;  // unlike a handle, never used again for another one
  STD_CUDA_CHECK(cudaStreamGetId(context.stream, &stream));
  static std::mutex one_at_a_time;
  static auto& kept = *new std::map<std::pair<int32_t, unsigned long long>, Tensor>;  // beyond the end of CUDA
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  const auto found = kept.find({context.device(), stream});
  if (found != kept.end()) return found->second;
  return kept.emplace(std::pair{context.device(), stream}, made(kKeptCounters)).first->second;
}

__device__ __forceinline__ int thread_of_block() { return threadIdx.y * blockDim.x + threadIdx.x; }

// Whether this block is the last of `blocks` to arrive at the counter. All of its threads ask, after what they have
// written for the last one. `last` is shared memory in which nobody reads or writes anything else until all have asked.
__device__ __forceinline__ bool arrives_last(unsigned* counter, unsigned blocks, bool* last) {
  __threadfence();
  __syncthreads();
  if (thread_of_block() == 0) *last = atomicInc(counter, blocks - 1) == blocks - 1;
  __syncthreads();
  if (*last) __threadfence();
  return *last;  // read again: kept in a register it makes sums of doubles spill
}

__device__ __forceinline__ bool arrives_last(unsigned* counter, unsigned blocks) {
  __shared__ bool last;
  return arrives_last(counter, blocks, &last);
}

}  // namespace wuskern
