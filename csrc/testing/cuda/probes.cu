// Kernels that do one thing each, for the tests of the emulation: what a GPU gives, or an error for what it refuses.
#include <cuda_runtime.h>

#include "../../cuda/launch.h"

namespace wuskern {
namespace {

constexpr unsigned kAll = 0xffffffffu;

__device__ int number() { return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z); }

// Each thread's value from the thread on the other side of the block, by way of shared memory.
template <bool waits>
__global__ void reverse(float* out) {
  __shared__ float values[1024];
  const int i = number(), threads = blockDim.x * blockDim.y * blockDim.z;
  values[i] = static_cast<float>(i);
  if constexpr (waits) __syncthreads();
  out[i] = values[threads - 1 - i];
}

__global__ void unwritten(float* out) {
  __shared__ float values[64];
  out[number()] = values[number()] + static_cast<float*>(dynamic_shared())[number()];
  values[number()] = static_cast<float*>(dynamic_shared())[number()] = 1;  // the next block must not see it
}

// Half of the threads return before the barrier, which then waits for the others only.
__global__ void some_return(float* out) {
  if (number() % 2) return;
  __shared__ float values[1024];
  values[number()] = 1;
  __syncthreads();
  out[number()] = values[blockDim.x - 2 - number()];
}

__global__ void diverge(float* out) {
  if (number() < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  out[number()] = 1;
}

__global__ void wait_for_ever(float* out) {
  if (number() == 5) {
    __syncthreads();
  } else if (number() < 32) {
    out[number()] = __shfl_sync(kAll, 1.0f, 0);
  }
}

__global__ void read_past(float* out) { out[number()] = out[number() + 1]; }

__global__ void write_past(float*) { static_cast<float*>(dynamic_shared())[64] = 1; }

__global__ void shuffles(float* out) {
  const float mine = static_cast<float>(number() % 32);
  float* const row = out + number() * 8;
  row[0] = __shfl_sync(kAll, mine, 5);
  row[1] = __shfl_down_sync(kAll, mine, 4);
  row[2] = __shfl_up_sync(kAll, mine, 4);
  row[3] = __shfl_xor_sync(kAll, mine, 3);
  row[4] = __shfl_sync(kAll, mine, 11, 8);
  row[5] = __shfl_down_sync(kAll, mine, 4, 8);
  row[6] = static_cast<float>(__popc(__ballot_sync(kAll, number() % 32 < 7)));
  row[7] = 0;
  if (number() % 2) row[7] = __shfl_xor_sync(0xaaaaaaaau, mine, 2);
}

__global__ void missing_lane(float* out) {
  if (number() != 3) out[number()] = __shfl_sync(0xfffffff7u, 1.0f, 3);
}

__global__ void where_am_i(float* out) {
  const int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  out[block * blockDim.x * blockDim.y * blockDim.z + number()] += static_cast<float>(1 + block);
}

__global__ void order(float* out, int* next) { out[number()] = static_cast<float>(atomicAdd(next, 1)); }

__global__ void count_votes(float* out) {
  out[number()] = static_cast<float>(__syncthreads_count(number() % 3 == 0) + 1000 * __syncthreads_or(number() == 9) +
                                     2000 * __syncthreads_and(number() != 9));
}

// out = what kernel `name` writes with so many threads in a block.
void probe(const std::string& name, Tensor& out, int64_t threads) {
  const Context context(out);
  float* const p = data_of<float>(out);
  int next = 0;
  const dim3 block(8, threads / 8);
  if (name == "reverse") return launch(context, reverse<true>, 1, block, 0, p);
  if (name == "reverse without a barrier") return launch(context, reverse<false>, 1, block, 0, p);
  if (name == "unwritten") return launch(context, unwritten, 2, threads, 4 * threads, p);
  if (name == "some return") return launch(context, some_return, 1, threads, 0, p);
  if (name == "diverge") return launch(context, diverge, 1, block, 0, p);
  if (name == "wait for ever") return launch(context, wait_for_ever, 1, threads, 0, p);
  if (name == "read past") return launch(context, read_past, 1, threads, 0, p);
  if (name == "write past a workspace") {
    Tensor workspace = new_tensor(out, {threads - 4});
    return launch(context, where_am_i, 1, threads, 0, data_of<float>(workspace));
  }
  if (name == "write past") return launch(context, write_past, 1, 1, 256, p);
  if (name == "shuffles") return launch(context, shuffles, 1, threads, 0, p);
  if (name == "missing lane") return launch(context, missing_lane, 1, threads, 0, p);
  if (name == "where am i") return launch(context, where_am_i, dim3(2, 3, 2), dim3(2, 2, threads / 4), 0, p);
  if (name == "order") return launch(context, order, 1, threads, 0, p, &next);
  if (name == "votes") return launch(context, count_votes, 1, threads, 0, p);
  if (name == "too many threads") return launch(context, shuffles, 1, 1025, 0, p);
  if (name == "no blocks") return launch(context, shuffles, 0, 32, 0, p);
  STD_TORCH_CHECK(false, "name: expected a probe, got ", name);
}

void boxed_probe(StableIValue* stack, uint64_t, uint64_t) {
  const std::string name = take_string(stack[0]);
  Tensor out = torch::stable::detail::to<Tensor>(stack[1]);
  probe(name, out, torch::stable::detail::to<int64_t>(stack[2]));
}

}  // namespace
}  // namespace wuskern

STABLE_TORCH_LIBRARY_IMPL(wuskern_native, CUDA, m) { m.impl("probe", &wuskern::boxed_probe); }
