#pragma once

// Functions shared by CPU loops and CUDA kernels.
#ifdef __CUDACC__
#define FLOWOPS_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define FLOWOPS_HOST_DEVICE inline
#endif
