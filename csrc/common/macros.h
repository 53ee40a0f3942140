#pragma once

// Always inlined: a call in a vector loop spills every lane.
#define FLOWOPS_INLINE inline __attribute__((always_inline))

// Functions shared by CPU loops and CUDA kernels.
#ifdef __CUDACC__
#define FLOWOPS_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define FLOWOPS_HOST_DEVICE FLOWOPS_INLINE
#endif

// Before a loop of fixed length whose array must stay in registers on a GPU.
#ifdef __CUDACC__
#define FLOWOPS_UNROLL _Pragma("unroll")
#else
#define FLOWOPS_UNROLL
#endif
