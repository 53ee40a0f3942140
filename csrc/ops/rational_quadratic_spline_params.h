// What the kernels of rational_quadratic_spline get, on both backends. Torch-free.
#pragma once

#include <cstdint>

#include "common/operand.h"
#include "math/rational_quadratic_spline.h"

namespace flowops {

struct SplineParams {
  int64_t batch = 0, outer = 0, inner = 0;
  int parameters = 0;
  bool inverse = false;
  SplineForm<double> form{};
  // left, right, bottom, top; a row of the last operand's channels each where `bounds` is given.
  double domain[4] = {};
  Operand bounds;           // of left, in the accumulation type; strides as the data's
  int64_t bounds_step = 0;  // from left to right, bottom and top
  Operand x;
  ParameterOperand params;

  int64_t elements() const { return outer * inner; }
};

struct SplineForwardParams : SplineParams {
  Operand z, logdet;  // logdet in the accumulation type: an element or, if summed, a sample
  bool summed = false;
  const void* logdet_in = nullptr;  // (batch,), optional, contiguous, where summed
};

struct SplineBackwardParams : SplineParams {
  Operand grad_z, grad_logdet, grad_x;
  ParameterOperand grad_params;
};

}  // namespace flowops
