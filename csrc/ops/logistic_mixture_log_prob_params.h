// What the kernels of logistic_mixture_log_prob get, on both backends. Torch-free.
#pragma once

#include <cstdint>

#include "common/operand.h"
#include "math/logistic_mixture_log_prob.h"

namespace flowops {

// outer is 1 and inner the pixels.
struct LogisticMixtureParams {
  int64_t batch = 0, outer = 1, inner = 0;
  int colours = 1;
  MixtureForm<double> form{};
  bool bytes = false;  // x is uint8
  ParameterOperand x;  // an element for each colour
  ParameterOperand params;
};

struct LogisticMixtureForwardParams : LogisticMixtureParams {
  void* log_prob = nullptr;  // (batch,)
};

struct LogisticMixtureBackwardParams : LogisticMixtureParams {
  const void* grad = nullptr;  // (batch,)
  ParameterOperand grad_params;
};

}  // namespace flowops
