// More of the vocabulary of math/scalar.h, for the ops that need it; its vector form is common/vec_special.h.
#pragma once

#include "math/scalar.h"

namespace flowops {

// clang-format off
FLOWOPS_HOST_DEVICE float sqrt(float x) { return ::sqrtf(x); }
FLOWOPS_HOST_DEVICE double sqrt(double x) { return ::sqrt(x); }
FLOWOPS_HOST_DEVICE float log1p(float x) { return ::log1pf(x); }
FLOWOPS_HOST_DEVICE double log1p(double x) { return ::log1p(x); }
FLOWOPS_HOST_DEVICE float atan(float x) { return ::atanf(x); }
FLOWOPS_HOST_DEVICE double atan(double x) { return ::atan(x); }
// log of any number: that of vectors takes positive normal ones alone.
FLOWOPS_HOST_DEVICE float log_any(float x) { return ::logf(x); }
FLOWOPS_HOST_DEVICE double log_any(double x) { return ::log(x); }
// clang-format on

}  // namespace flowops
