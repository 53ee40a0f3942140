// How autograd keeps an optional tensor: undefined where there is none.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace flowops {

inline std::optional<at::Tensor> optional(const at::Tensor& tensor) {
  return tensor.defined() ? std::optional(tensor) : std::nullopt;
}

}  // namespace flowops
