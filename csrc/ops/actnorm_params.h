// What the kernels of actnorm get, on both backends. Torch-free.
#pragma once

#include <cstdint>

#include "common/operand.h"

namespace flowops {

// Operands are (batch, outer, inner): channels by pixels, or pixels by channels where `inner_channels`.
// bias, log_scale, logdet and the gradients of the parameters are contiguous, in the accumulation type.
struct ActnormParams {
  int64_t batch = 0, channels = 0, pixels = 0;
  bool inner_channels = false, inverse = false;
  Operand x, z;
  const void* bias = nullptr;
  const void* log_scale = nullptr;
  const void* logdet_in = nullptr;  // (batch,), optional
  void* logdet = nullptr;           // (batch,)
};

struct ActnormBackwardParams {
  int64_t batch = 0, channels = 0, pixels = 0;
  bool inner_channels = false, inverse = false;
  Operand grad_z, x, grad_x;
  const void* bias = nullptr;
  const void* log_scale = nullptr;
  const void* grad_logdet = nullptr;  // (batch,)
  void* grad_bias = nullptr;          // (channels,)
  void* grad_log_scale = nullptr;     // (channels,)
};

struct ActnormStatisticsParams {
  int64_t batch = 0, channels = 0, pixels = 0;
  bool inner_channels = false;
  Operand x;
  void* mean = nullptr;  // (channels,)
  void* std = nullptr;   // (channels,)
};

}  // namespace flowops
