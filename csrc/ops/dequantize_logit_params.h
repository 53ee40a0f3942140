// What the kernels of dequantize_logit get, on both backends. Torch-free.
#pragma once

#include <cstdint>

#include "common/operand.h"
#include "ops/noise_params.h"

namespace flowops {

// Element (row, column) of sample b takes uniform number (b outer + row) inner + column of the stream, so the
// samples are walked planar whatever their layout.
struct DequantizeLogitParams {
  int64_t batch = 0, outer = 0, inner = 0;
  double levels = 1, alpha = 0;
  double log_slope = 0;  // of the affine map before the logit, negative for the inverse
  bool inverse = false;
  bool bytes = false;            // x is uint8, and z float
  const int64_t* key = nullptr;  // seed and offset, in the memory of the device; null without noise
  Operand x, z;
  const void* logdet_before = nullptr;  // (batch,), may be null
  void* logdet = nullptr;               // (batch,)
};

struct DequantizeLogitBackwardParams {
  int64_t batch = 0, outer = 0, inner = 0;
  double levels = 1, alpha = 0;
  bool inverse = false;
  const int64_t* key = nullptr;
  Operand grad_z, x, grad_x;
  const void* grad_logdet = nullptr;  // (batch,)
};

}  // namespace flowops
