// Every instruction that C++ has no word for, one function each. csrc/testing/cuda/mma.h has their twins on the CPU.
#pragma once

#ifdef WUSKERN_EMULATED
#include "../testing/cuda/mma.h"
#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "../common/gemm.h"

namespace wuskern {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
constexpr bool kHasWgmma = true;
#else
constexpr bool kHasWgmma = false;
#endif

// use(wgmma), a bool_constant: whether a tile n wide takes Hopper's own instruction. Only that GPU is given the widest,
// and tiles of which fewer columns are used.
template <int n, int used, class Use>
__device__ __forceinline__ void choose_instruction(Use&& use) {
  if constexpr ((n < kWidestTile && used == n) || kHasWgmma) {
    use(std::bool_constant<(kHasWgmma && n >= kLeastWgmma)>{});
  } else {
    __trap();
  }
}

// The dynamic shared memory of a block whose tiles are swizzled: they start where the pattern of 1024 bytes does.
__device__ __forceinline__ unsigned char* tile_memory() {
  extern __shared__ __align__(1024) unsigned char tiles[];
  return tiles;
}

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// ---- copies to shared memory that do not wait ----------------------------------------------------------------------

// Writes 16 bytes: the first `bytes` of them from there, zeros behind those. Both sides are aligned to 16 bytes; no
// more than `bytes` are read.
__device__ __forceinline__ void copy_16_async(uint32_t to, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(__cvta_generic_to_global(from)),
               "r"(bytes)
               : "memory");
}

// Closes a group of this thread's copies.
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most `pending` of this thread's latest groups are on their way.
template <int pending>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// Before wgmma reads what copies of this thread have brought.
__device__ __forceinline__ void show_copies_to_wgmma() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ---- mma.sync ------------------------------------------------------------------------------------------------------

// Four 8 x 8 matrices of 16 bits; lane i gives the address of row i % 8 of matrix i / 8.
__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row)
               : "memory");
}

__device__ __forceinline__ void load_matrices_transposed(uint32_t (&r)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row)
               : "memory");
}

// d[16, 8] += a[16, 16] b[16, 8], of a warp.
template <typename T>
__device__ __forceinline__ void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (std::is_same_v<T, __half>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

}  // namespace wuskern

#include "wgmma.h"

#endif
