// The storage types of the CUDA kernels, named without torch or CUDA.
#pragma once

namespace flowops {

enum class StorageType : int { kFloat, kDouble, kHalf, kBFloat16 };

}  // namespace flowops
