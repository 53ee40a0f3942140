// dequantize_logit: contract, checks and operands, shared by the backends.
//
// x (B, C, *S), float or uint8, holds values of `levels` levels; element i, counted in row-major order
// whatever the layout, gets uniform number i of the stream `key` (math/philox.h) added, or nothing without a
// key. z, of the type of x or float for uint8, is the logit of math/dequantize_logit.h; logdet (B,), nats in
// the accumulation type, is what was given plus the log-determinant. `inverse` takes z back to x plus noise.
#pragma once

#include <ATen/core/Tensor.h>

#include <cmath>
#include <optional>
#include <tuple>

#include "common/checks.h"
#include "common/layout.h"
#include "ops/dequantize_logit_params.h"
#include "ops/random_key.h"

namespace flowops {

std::tuple<at::Tensor, at::Tensor> dequantize_logit(const at::Tensor& x, const OptionalTensor& key,
                                                    const OptionalTensor& logdet, int64_t levels,
                                                    double alpha, bool inverse);

// Of a floating x. The noise is made again from `key`.
at::Tensor dequantize_logit_backward(const at::Tensor& grad_z, const at::Tensor& grad_logdet,
                                     const at::Tensor& x, const OptionalTensor& key, int64_t levels,
                                     double alpha, bool inverse);

// The first uniform numbers of the stream `key`, as a contiguous tensor on its device.
at::Tensor uniform_noise(const at::Tensor& key, at::IntArrayRef size, at::ScalarType dtype);

inline constexpr const char* kDequantizeLogit = "dequantize_logit";
// Above it float32 has no room for noise.
inline constexpr int64_t kMostLevels = 65536;

inline void check_logit_map(const at::Tensor& x, const OptionalTensor& key, int64_t levels, double alpha,
                            bool inverse) {
  FLOWOPS_CHECK(kDequantizeLogit, levels >= 1 && levels <= kMostLevels, "levels must be 1 to ", kMostLevels,
                ", got ", levels);
  FLOWOPS_CHECK(kDequantizeLogit, alpha > 0 && alpha < 0.5, "alpha must be in (0, 0.5), got ", alpha);
  if (!key) return;
  FLOWOPS_CHECK(kDequantizeLogit, !inverse, "key must be None for the inverse, got one");
  check_key(kDequantizeLogit, *key);
  FLOWOPS_CHECK(kDequantizeLogit, key->device() == x.device(), "key must be on ", x.device(),
                " (like x), got ", key->device());
}

inline at::ScalarType logit_type(const at::Tensor& x) {
  return x.scalar_type() == at::kByte ? at::kFloat : x.scalar_type();
}

inline void check_dequantize_logit_inputs(const at::Tensor& x, const OptionalTensor& key,
                                          const OptionalTensor& logdet, int64_t levels, double alpha,
                                          bool inverse) {
  if (x.scalar_type() == at::kByte) {
    FLOWOPS_CHECK(kDequantizeLogit, x.dim() >= 2, "x must have shape (batch, channels, ...), got ",
                  x.sizes());
    FLOWOPS_CHECK(kDequantizeLogit, !inverse, "x must be floating for the inverse, got ", x.scalar_type());
  } else {
    check_data(kDequantizeLogit, "x", x);
  }
  check_logit_map(x, key, levels, alpha, inverse);
  if (!logdet) return;
  const auto wide = accumulation_type(logit_type(x));
  FLOWOPS_CHECK(kDequantizeLogit, logdet->dim() == 1 && logdet->size(0) == x.size(0),
                "logdet must have shape [", x.size(0), "] (one value a sample), got ", logdet->sizes());
  FLOWOPS_CHECK(kDequantizeLogit, logdet->scalar_type() == wide, "logdet must be ", wide, ", got ",
                logdet->scalar_type());
  check_same_device(kDequantizeLogit, "logdet", *logdet, x);
}

inline void check_dequantize_logit_backward_inputs(const at::Tensor& grad_z, const at::Tensor& grad_logdet,
                                                   const at::Tensor& x, const OptionalTensor& key,
                                                   int64_t levels, double alpha, bool inverse) {
  check_data(kDequantizeLogit, "x", x);
  check_logit_map(x, key, levels, alpha, inverse);
  FLOWOPS_CHECK(kDequantizeLogit, grad_z.sizes() == x.sizes(), "grad_z must have shape ", x.sizes(),
                " (like x), got ", grad_z.sizes());
  check_same_dtype(kDequantizeLogit, "grad_z", grad_z, x);
  const auto wide = accumulation_type(x.scalar_type());
  FLOWOPS_CHECK(kDequantizeLogit, grad_logdet.dim() == 1 && grad_logdet.size(0) == x.size(0),
                "grad_logdet must have shape [", x.size(0), "] (one value a sample), got ",
                grad_logdet.sizes());
  FLOWOPS_CHECK(kDequantizeLogit, grad_logdet.scalar_type() == wide, "grad_logdet must be ", wide, ", got ",
                grad_logdet.scalar_type());
}

// A narrower type would round some numbers up to 1.
inline void check_uniform_noise_inputs(const at::Tensor& key, at::ScalarType dtype) {
  check_key("rand", key);
  FLOWOPS_CHECK("rand", dtype == at::kDouble || dtype == at::kFloat, "dtype must be float64 or float32, got ",
                dtype);
}

// Tensors that must live until the kernel has run, beside the params that point into them.
struct DequantizeLogitCall {
  at::Tensor x, key, logdet_before, z, logdet;
  DequantizeLogitParams p;
};

struct DequantizeLogitBackwardCall {
  at::Tensor grad_z, grad_logdet, x, key, grad_x;
  DequantizeLogitBackwardParams p;
};

// What forward and backward have in common. Returns whether samples are vectors.
template <typename Call>
bool prepare_logit(Call& call, const at::Tensor& x, const OptionalTensor& key, int64_t levels, double alpha,
                   bool inverse) {
  auto& p = call.p;
  const bool vectors = walk_planar(p, x);
  p.levels = static_cast<double>(levels), p.alpha = alpha, p.inverse = inverse;
  call.x = walkable(x);
  p.x = operand(call.x, vectors);
  if (!key) return vectors;
  call.key = key->contiguous();
  p.key = call.key.template const_data_ptr<int64_t>();
  return vectors;
}

inline DequantizeLogitCall prepare_dequantize_logit(const at::Tensor& x, const OptionalTensor& key,
                                                    const OptionalTensor& logdet, int64_t levels,
                                                    double alpha, bool inverse) {
  DequantizeLogitCall call;
  const bool vectors = prepare_logit(call, x, key, levels, alpha, inverse);
  const auto type = logit_type(x);
  call.z = empty_like_layout(call.x, type);
  call.logdet = x.new_empty({x.size(0)}, x.options().dtype(accumulation_type(type)));
  auto& p = call.p;
  const double log_slope = std::log1p(-2 * alpha) - std::log(p.levels);
  p.log_slope = inverse ? -log_slope : log_slope;
  p.bytes = x.scalar_type() == at::kByte;
  p.z = operand(call.z, vectors);
  p.logdet = call.logdet.data_ptr();
  if (logdet) {
    call.logdet_before = logdet->contiguous();
    p.logdet_before = call.logdet_before.const_data_ptr();
  }
  merge_rows(p.outer, p.inner, {&p.x, &p.z});
  return call;
}

inline DequantizeLogitBackwardCall prepare_dequantize_logit_backward(
    const at::Tensor& grad_z, const at::Tensor& grad_logdet, const at::Tensor& x, const OptionalTensor& key,
    int64_t levels, double alpha, bool inverse) {
  DequantizeLogitBackwardCall call;
  const bool vectors = prepare_logit(call, x, key, levels, alpha, inverse);
  call.grad_z = walkable(grad_z), call.grad_logdet = grad_logdet.contiguous();
  call.grad_x = empty_like_layout(call.x);
  auto& p = call.p;
  p.grad_z = operand(call.grad_z, vectors);
  p.grad_x = operand(call.grad_x, vectors);
  p.grad_logdet = call.grad_logdet.const_data_ptr();
  merge_rows(p.outer, p.inner, {&p.grad_z, &p.x, &p.grad_x});
  return call;
}

}  // namespace flowops
