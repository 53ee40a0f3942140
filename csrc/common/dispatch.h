#pragma once

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>

// Runs the body with `scalar_t`, the storage type, and `opmath_t`, the type of all arithmetic on it.
#define FLOWOPS_DISPATCH(type, op, ...)                                     \
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, type, op, [&] { \
    using opmath_t [[maybe_unused]] = at::opmath_type<scalar_t>;            \
    __VA_ARGS__();                                                          \
  })
