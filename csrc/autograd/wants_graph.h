// Whether autograd must see a call. Where it need not, the Autograd kernels go straight to the backend. A
// tangent of forward-mode AD counts: it meets the Function's refusal instead of being dropped.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>

#include <optional>

namespace flowops {

inline bool tracked(const at::Tensor& tensor) {
  return (at::GradMode::is_enabled() && tensor.requires_grad()) || tensor._fw_grad(/*level=*/0).defined();
}

inline bool tracked(const std::optional<at::Tensor>& tensor) {
  return tensor.has_value() && tracked(*tensor);
}

inline bool tracked(at::TensorList list) {
  for (const auto& tensor : list) {
    if (tracked(tensor)) return true;
  }
  return false;
}

template <typename... Inputs>
bool wants_graph(const Inputs&... inputs) {
  return (tracked(inputs) || ...);
}

}  // namespace flowops
