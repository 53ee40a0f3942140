// cudaStream_t and cudaError_t, for host code: CUDA's, or those of csrc/simt.
#pragma once

#if defined(FLOWOPS_SIMT)
#include "simt/types.h"
#else
#include <cuda_runtime_api.h>
#endif
