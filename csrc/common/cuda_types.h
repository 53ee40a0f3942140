// The storage types of the CUDA kernels, named without torch or CUDA.
#pragma once

namespace flowops {

enum class StorageType : int { kFloat, kDouble, kHalf, kBFloat16 };

inline int storage_bytes(StorageType type) {
  return type == StorageType::kDouble ? 8 : type == StorageType::kFloat ? 4 : 2;
}

}  // namespace flowops
