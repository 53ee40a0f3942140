// The vocabulary of csrc/math for one value: what vec.h offers for a vector of lanes. Torch-free.
#pragma once

#include <cmath>

#include "common/macros.h"

namespace flowops {

// clang-format off
FLOWOPS_HOST_DEVICE float exp(float x) { return ::expf(x); }
FLOWOPS_HOST_DEVICE double exp(double x) { return ::exp(x); }
FLOWOPS_HOST_DEVICE float log(float x) { return ::logf(x); }
FLOWOPS_HOST_DEVICE double log(double x) { return ::log(x); }
FLOWOPS_HOST_DEVICE float tanh(float x) { return ::tanhf(x); }
FLOWOPS_HOST_DEVICE double tanh(double x) { return ::tanh(x); }
FLOWOPS_HOST_DEVICE float abs(float x) { return ::fabsf(x); }
FLOWOPS_HOST_DEVICE double abs(double x) { return ::fabs(x); }
FLOWOPS_HOST_DEVICE float negative_abs(float x) { return -::fabsf(x); }
FLOWOPS_HOST_DEVICE double negative_abs(double x) { return -::fabs(x); }
// Of a NaN and a number, the NaN as first argument wins.
FLOWOPS_HOST_DEVICE float minimum(float a, float b) { return b < a ? b : a; }
FLOWOPS_HOST_DEVICE double minimum(double a, double b) { return b < a ? b : a; }
// clang-format on

template <typename T>
FLOWOPS_HOST_DEVICE T quotient(T a, T b) {
  return a / b;
}

template <typename T>
FLOWOPS_HOST_DEVICE T select(bool condition, T yes, T no) {
  return condition ? yes : no;
}

}  // namespace flowops
