// Input checks shared by the ops. Every message reads `op: argument must ..., got ...`.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <optional>
#include <vector>

#define FLOWOPS_CHECK(op, condition, ...) TORCH_CHECK_VALUE(condition, op, ": ", __VA_ARGS__)

namespace flowops {

using OptionalTensor = std::optional<at::Tensor>;
using TensorVector = std::vector<at::Tensor>;

// Log-determinants and per-channel parameters are held in this type.
inline at::ScalarType accumulation_type(at::ScalarType type) {
  return type == at::kDouble ? at::kDouble : at::kFloat;
}

inline void check_data(const char* op, const char* name, const at::Tensor& x) {
  FLOWOPS_CHECK(op, x.dim() >= 2, name, " must have shape (batch, channels, ...), got ", x.sizes());
  const auto type = x.scalar_type();
  FLOWOPS_CHECK(op, type == at::kDouble || type == at::kFloat || type == at::kHalf || type == at::kBFloat16,
                name, " must be float64, float32, float16 or bfloat16, got ", type);
}

inline void check_same_device(const char* op, const char* name, const at::Tensor& t, const at::Tensor& x) {
  FLOWOPS_CHECK(op, t.device() == x.device(), name, " must be on ", x.device(), " (like x), got ",
                t.device());
}

inline void check_same_dtype(const char* op, const char* name, const at::Tensor& t, const at::Tensor& x) {
  FLOWOPS_CHECK(op, t.scalar_type() == x.scalar_type(), name, " must be ", x.scalar_type(), " (like x), got ",
                t.scalar_type());
}

// An incoming log-determinant, onto which the op adds its own.
inline void check_logdet(const char* op, const at::Tensor& logdet, const at::Tensor& x) {
  FLOWOPS_CHECK(op, logdet.dim() == 1 && logdet.size(0) == x.size(0), "logdet must have shape [", x.size(0),
                "] (one value a sample), got ", logdet.sizes());
  FLOWOPS_CHECK(op, logdet.scalar_type() == accumulation_type(x.scalar_type()), "logdet must be ",
                accumulation_type(x.scalar_type()), ", got ", logdet.scalar_type());
  check_same_device(op, "logdet", logdet, x);
}

}  // namespace flowops
