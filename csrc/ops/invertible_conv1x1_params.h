// What the kernels of invertible_conv1x1 get, on both backends. Torch-free.
#pragma once

#include <cstdint>

#include "common/operand.h"

namespace flowops {

// Operands are always (batch, channel, pixel), whatever the memory order: outer = channel, inner = pixel.
// weight (C, C) and bias (C,), or null, are contiguous, in the accumulation type.
struct InvertibleConv1x1Params {
  int64_t batch = 0, channels = 0, pixels = 0;
  Operand x, z;
  const void* weight = nullptr;
  const void* bias = nullptr;
};

// grad_weight (C, C) and grad_bias (C,) are contiguous, in the accumulation type; null where not wanted, as
// grad_x.data is.
struct InvertibleConv1x1BackwardParams {
  int64_t batch = 0, channels = 0, pixels = 0;
  Operand grad_z, x, grad_x;
  const void* weight = nullptr;
  void* grad_weight = nullptr;
  void* grad_bias = nullptr;
};

// One layer whose weight is prepared from its parameters; all layers of a model come as one array. Everything
// is contiguous and of one arithmetic type, float or double. LU layers have lower, upper (C, C), log_s, sign
// (C,) and permutation; full layers have `full` (C, C) instead. The actnorm is null where there is none.
struct PreparedLayer {
  int64_t channels = 0;
  const void* lower = nullptr;
  const void* upper = nullptr;
  const void* log_s = nullptr;
  const void* sign = nullptr;
  const int64_t* permutation = nullptr;
  const void* full = nullptr;
  const void* actnorm_bias = nullptr;
  const void* actnorm_log_scale = nullptr;
  void* weight = nullptr;  // (C, C), result
  void* bias = nullptr;    // (C,), result, null without actnorm
  void* logdet = nullptr;  // one value, result
};

// The gradients of one layer. `forward.weight` holds the result of the forward pass.
struct PreparedLayerBackward {
  PreparedLayer forward;
  const void* grad_weight = nullptr;
  const void* grad_bias = nullptr;    // null without actnorm
  const void* grad_logdet = nullptr;  // one value
  void* grad_lower = nullptr;         // (C, C), strict lower triangle, zero elsewhere
  void* grad_upper = nullptr;         // (C, C), strict upper triangle, zero elsewhere
  void* grad_log_s = nullptr;
  void* grad_full = nullptr;
  void* grad_actnorm_bias = nullptr;
  void* grad_actnorm_log_scale = nullptr;
};

}  // namespace flowops
