// What the CUDA kernels of mlp get. Torch-free.
#pragma once

#include <cstdint>

namespace flowops {

// The rows of a matrix, each dense; `row` elements lie between their starts.
struct MlpRows {
  const void* data = nullptr;  // null: there is none
  int64_t row = 0;
};

// After a layer's product: outputs + skip, kept in `hidden` where there is one, and its activation.
struct MlpActivationParams {
  int64_t rows = 0, columns = 0;
  MlpRows outputs, skip;
  void* hidden = nullptr;  // may be null
  int64_t hidden_row = 0;
  void* activations = nullptr;  // dense; may be the memory of `outputs`
};

// After a product of the backward pass: where `hidden` is positive the gradient stays, plus `skip`.
struct MlpGradientParams {
  int64_t rows = 0, columns = 0;
  MlpRows hidden, skip;
  void* gradient = nullptr;  // dense, changed in place
};

}  // namespace flowops
