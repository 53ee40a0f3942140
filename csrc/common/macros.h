#pragma once

// Always inlined: a call in a vector loop spills every lane.
#define FLOWOPS_INLINE inline __attribute__((always_inline))

// Functions shared by CPU loops and CUDA kernels.
#ifdef __CUDACC__
#define FLOWOPS_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define FLOWOPS_HOST_DEVICE FLOWOPS_INLINE
#endif
