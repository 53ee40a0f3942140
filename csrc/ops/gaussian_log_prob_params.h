// What the kernels of gaussian_log_prob get, on both backends. Torch-free.
#pragma once

#include <cstdint>

#include "common/operand.h"

namespace flowops {

// mean and log_scale are null where they are absent: 0 everywhere.
struct GaussianLogProbParams {
  int64_t batch = 0, outer = 0, inner = 0;
  Operand x, mean, log_scale;
  void* log_prob = nullptr;  // (batch,)
};

// Gradients that are not wanted are null.
struct GaussianLogProbBackwardParams {
  int64_t batch = 0, outer = 0, inner = 0;
  const void* grad = nullptr;  // (batch,)
  Operand x, mean, log_scale;
  Operand grad_x, grad_mean, grad_log_scale;
};

}  // namespace flowops
