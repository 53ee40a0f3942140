// What a kernel that fills a tensor with numbers of the stream gets. Torch-free.
#pragma once

#include <cstdint>

namespace flowops {

struct NoiseParams {
  int64_t count = 0;
  const int64_t* key = nullptr;  // seed and offset, in the memory of the device
  void* out = nullptr;
};

}  // namespace flowops
