// Hopper's wgmma: a warpgroup multiplies two tiles of shared memory, on its own time. Included by mma.h.
#pragma once

#include <cstdint>
#include <type_traits>

namespace wuskern {

// How wgmma finds a tile: where it starts, and how far it is from 64 columns to the next 64 (`across`) and from 8 rows
// to the next 8 (`down`), in bytes; 128-byte rows, swizzled. Rows are terms where the tile is transposed for wgmma, and
// `across` is not used where they are not.
__device__ __forceinline__ uint64_t tile_descriptor(uint32_t start, uint32_t across, uint32_t down) {
  return static_cast<uint64_t>(start >> 4) | static_cast<uint64_t>(across >> 4) << 16 |
         static_cast<uint64_t>(down >> 4) << 32 | uint64_t{1} << 62;
}

// The descriptor of what lies so many bytes further; the start is in its lower half, which cannot overflow.
__device__ __forceinline__ uint64_t further_in_tile(uint64_t descriptor, uint32_t bytes) {
  const uint32_t low = static_cast<uint32_t>(descriptor) + (bytes >> 4);
  return (descriptor >> 32 << 32) | low;
}

// Before the first wgmma, and after anything else has touched its sums.
__device__ __forceinline__ void fence_wgmma() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ __forceinline__ void commit_wgmma() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Until at most `pending` of the latest groups are at work.
template <int pending>
__device__ __forceinline__ void wait_for_wgmma() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}

#define WUSKERN_SUMS_64                                                                   \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, " \
  "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define WUSKERN_SUMS_96 \
  WUSKERN_SUMS_64 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define WUSKERN_SUMS_128 \
  WUSKERN_SUMS_96 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define WUSKERN_SUMS_160 \
  WUSKERN_SUMS_128 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define WUSKERN_SUMS_192 \
  WUSKERN_SUMS_160 ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define WUSKERN_SUMS_208 WUSKERN_SUMS_192 ", %96, %97, %98, %99, %100, %101, %102, %103"
#define WUSKERN_SUMS_256                                                                   \
  WUSKERN_SUMS_208                                                                         \
  ", %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, " \
  "%118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define WUSKERN_4(i) "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])
#define WUSKERN_8(i) WUSKERN_4(i), WUSKERN_4(i + 1)
#define WUSKERN_16(i) WUSKERN_8(i), WUSKERN_8(i + 2)
#define WUSKERN_OUT_64 WUSKERN_16(0), WUSKERN_16(4)
#define WUSKERN_OUT_96 WUSKERN_OUT_64, WUSKERN_16(8)
#define WUSKERN_OUT_128 WUSKERN_OUT_96, WUSKERN_16(12)
#define WUSKERN_OUT_160 WUSKERN_OUT_128, WUSKERN_16(16)
#define WUSKERN_OUT_192 WUSKERN_OUT_160, WUSKERN_16(20)
#define WUSKERN_OUT_208 WUSKERN_OUT_192, WUSKERN_8(24)
#define WUSKERN_OUT_256 WUSKERN_OUT_208, WUSKERN_8(26), WUSKERN_16(28)
#define WUSKERN_WGMMA(N, TYPE, A, B, SCALE, TRANSPOSED_A, TRANSPOSED_B)                                       \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #SCALE ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N       \
               "k16.f32." TYPE "." TYPE " {" WUSKERN_SUMS_##N "}, %" #A ", %" #B ", p, 1, 1, %" #TRANSPOSED_A \
                                                              ", %" #TRANSPOSED_B ";\n}"                      \
               : WUSKERN_OUT_##N                                                                              \
               : "l"(a), "l"(b), "r"(1), "n"(transposed_a), "n"(1))
#define WUSKERN_WIDTH(N, ...)                                         \
  if constexpr (n == N && half) WUSKERN_WGMMA(N, "f16", __VA_ARGS__); \
  if constexpr (n == N && !half) WUSKERN_WGMMA(N, "bf16", __VA_ARGS__)

// d[64, n] += a[64, 16] b[16, n], of a warpgroup; b transposed, a as it is said.
template <typename T, int n, int transposed_a>
__device__ __forceinline__ void multiply_add_async(float (&d)[n / 8][4], uint64_t a, uint64_t b) {
  constexpr bool half = std::is_same_v<T, __half>;
  WUSKERN_WIDTH(64, 32, 33, 34, 35, 36);
  WUSKERN_WIDTH(96, 48, 49, 50, 51, 52);
  WUSKERN_WIDTH(128, 64, 65, 66, 67, 68);
  WUSKERN_WIDTH(160, 80, 81, 82, 83, 84);
  WUSKERN_WIDTH(192, 96, 97, 98, 99, 100);
  WUSKERN_WIDTH(208, 104, 105, 106, 107, 108);
  WUSKERN_WIDTH(256, 128, 129, 130, 131, 132);
}

#undef WUSKERN_WIDTH
#undef WUSKERN_WGMMA
#undef WUSKERN_OUT_256
#undef WUSKERN_OUT_208
#undef WUSKERN_OUT_192
#undef WUSKERN_OUT_160
#undef WUSKERN_OUT_128
#undef WUSKERN_OUT_96
#undef WUSKERN_OUT_64
#undef WUSKERN_16
#undef WUSKERN_8
#undef WUSKERN_4
#undef WUSKERN_SUMS_256
#undef WUSKERN_SUMS_208
#undef WUSKERN_SUMS_192
#undef WUSKERN_SUMS_160
#undef WUSKERN_SUMS_128
#undef WUSKERN_SUMS_96
#undef WUSKERN_SUMS_64

}  // namespace wuskern
