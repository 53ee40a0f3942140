// What the kernels of spectral_norm get, on both backends. Torch-free.
#pragma once

#include <cstdint>

namespace flowops {

struct SpectralNormSettings {
  int64_t iterations = 1;
  double eps = 1e-12;
  double coefficient = 0;  // none where not positive
};

// One layer; all layers of a model come as one array. The matrix is (rows, columns), dense; weight and result
// are of the storage type, all else of the accumulation type.
struct SpectralNormLayer {
  int64_t rows = 0, columns = 0;
  const void* weight = nullptr;
  const void* u = nullptr;  // (rows,)
  const void* v = nullptr;  // (columns,)
  void* result = nullptr;
  void* new_u = nullptr;
  void* new_v = nullptr;
  void* sigma = nullptr;  // one value
};

// u, v and sigma are those that the forward pass returned.
struct SpectralNormLayerBackward {
  int64_t rows = 0, columns = 0;
  const void* grad_result = nullptr;
  const void* grad_sigma = nullptr;  // one value
  const void* weight = nullptr;
  const void* u = nullptr;
  const void* v = nullptr;
  const void* sigma = nullptr;
  void* grad_weight = nullptr;
};

}  // namespace flowops
