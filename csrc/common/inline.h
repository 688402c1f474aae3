// Two words that host, device and test compilers spell differently.
#pragma once

// Inlined wherever it is called: a loop over it is then compiled for the instruction set of its caller.
#if defined(__CUDACC__)
#define WUSKERN_INLINE __host__ __device__ __forceinline__
#define WUSKERN_HOST_DEVICE __host__ __device__
#else
#define WUSKERN_INLINE inline __attribute__((always_inline))
#define WUSKERN_HOST_DEVICE
#endif
