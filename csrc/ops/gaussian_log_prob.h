// gaussian_log_prob: contract, checks and operands, shared by the backends.
//
// The log-density of x (B, C, *S) under a Gaussian with independent elements, summed over each sample: (B,),
// nats, in the accumulation type. mean and log_scale, the logarithm of the standard deviation, have the shape
// of x, and are 0 where they are absent. In the place of both stands params (B, 2C, *S), a net's output
// whole: the means, then the log-scales. The formulas are those of math/gaussian_log_prob.h.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

#include "common/checks.h"
#include "common/layout.h"
#include "ops/gaussian_log_prob_params.h"

namespace flowops {

at::Tensor gaussian_log_prob(const at::Tensor& x, const OptionalTensor& mean, const OptionalTensor& log_scale,
                             const OptionalTensor& params);

// Of x, mean, log_scale and params; those not wanted, and those of absent arguments, are empty.
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> gaussian_log_prob_backward(
    const at::Tensor& grad, const at::Tensor& x, const OptionalTensor& mean, const OptionalTensor& log_scale,
    const OptionalTensor& params, bool wants_x, bool wants_mean, bool wants_log_scale, bool wants_params);

inline constexpr const char* kGaussianLogProb = "gaussian_log_prob";

inline void check_gaussian_log_prob_inputs(const at::Tensor& x, const OptionalTensor& mean,
                                           const OptionalTensor& log_scale, const OptionalTensor& params) {
  check_data(kGaussianLogProb, "x", x);
  const auto check = [&](const char* name, const OptionalTensor& t, at::IntArrayRef shape, const char* why) {
    if (!t) return;
    FLOWOPS_CHECK(kGaussianLogProb, t->sizes() == shape, name, " must have shape ", shape, why, ", got ",
                  t->sizes());
    check_same_dtype(kGaussianLogProb, name, *t, x);
    check_same_device(kGaussianLogProb, name, *t, x);
  };
  check("mean", mean, x.sizes(), " (like x)");
  check("log_scale", log_scale, x.sizes(), " (like x)");
  FLOWOPS_CHECK(kGaussianLogProb, !params || (!mean && !log_scale),
                "params must be None where mean or log_scale is given, got a tensor");
  at::DimVector both(x.sizes());
  both[1] *= 2;
  check("params", params, both, " (means and log-scales of x)");
}

inline void check_gaussian_log_prob_backward_inputs(const at::Tensor& grad, const at::Tensor& x,
                                                    const OptionalTensor& mean,
                                                    const OptionalTensor& log_scale,
                                                    const OptionalTensor& params) {
  check_gaussian_log_prob_inputs(x, mean, log_scale, params);
  const auto wide = accumulation_type(x.scalar_type());
  FLOWOPS_CHECK(kGaussianLogProb, grad.dim() == 1 && grad.size(0) == x.size(0), "grad must have shape [",
                x.size(0), "] (one value a sample), got ", grad.sizes());
  FLOWOPS_CHECK(kGaussianLogProb, grad.scalar_type() == wide, "grad must be ", wide, ", got ",
                grad.scalar_type());
  check_same_device(kGaussianLogProb, "grad", grad, x);
}

// Tensors that must live until the kernel has run, beside the params that point into them.
struct GaussianLogProbCall {
  at::Tensor x, mean, log_scale, params, log_prob;
  GaussianLogProbParams p;
};

struct GaussianLogProbBackwardCall {
  at::Tensor grad, x, mean, log_scale, params, grad_x, grad_mean, grad_log_scale, grad_params;
  GaussianLogProbBackwardParams p;
};

// What forward and backward have in common. Returns whether samples are vectors.
template <typename Call>
bool prepare_density(Call& call, const at::Tensor& x, const OptionalTensor& mean,
                     const OptionalTensor& log_scale, const OptionalTensor& params) {
  auto& p = call.p;
  const bool vectors = walk_planar(p, x);
  call.x = walkable(x);
  p.x = operand(call.x, vectors);
  if (mean) call.mean = walkable(*mean), p.mean = operand(call.mean, vectors);
  if (log_scale) call.log_scale = walkable(*log_scale), p.log_scale = operand(call.log_scale, vectors);
  if (params) {
    call.params = walkable(*params);
    p.mean = operand(call.params, vectors);
    p.log_scale = operand(call.params, vectors, x.size(1));
  }
  return vectors;
}

inline GaussianLogProbCall prepare_gaussian_log_prob(const at::Tensor& x, const OptionalTensor& mean,
                                                     const OptionalTensor& log_scale,
                                                     const OptionalTensor& params) {
  GaussianLogProbCall call;
  prepare_density(call, x, mean, log_scale, params);
  call.log_prob = x.new_empty({x.size(0)}, x.options().dtype(accumulation_type(x.scalar_type())));
  auto& p = call.p;
  p.log_prob = call.log_prob.data_ptr();
  merge_rows(p.outer, p.inner, {&p.x, &p.mean, &p.log_scale});
  return call;
}

inline GaussianLogProbBackwardCall prepare_gaussian_log_prob_backward(
    const at::Tensor& grad, const at::Tensor& x, const OptionalTensor& mean, const OptionalTensor& log_scale,
    const OptionalTensor& params, bool wants_x, bool wants_mean, bool wants_log_scale, bool wants_params) {
  GaussianLogProbBackwardCall call;
  const bool vectors = prepare_density(call, x, mean, log_scale, params);
  call.grad = grad.contiguous();
  auto& p = call.p;
  p.grad = call.grad.const_data_ptr();
  const auto allocate = [&](bool wanted, const at::Tensor& like, Operand& target) {
    if (!wanted || !like.defined()) return x.new_empty({0});
    auto result = empty_like_layout(like);
    target = operand(result, vectors);
    return result;
  };
  call.grad_x = allocate(wants_x, call.x, p.grad_x);
  call.grad_mean = allocate(wants_mean, call.mean, p.grad_mean);
  call.grad_log_scale = allocate(wants_log_scale, call.log_scale, p.grad_log_scale);
  call.grad_params = allocate(wants_params, call.params, p.grad_mean);
  if (wants_params && params) p.grad_log_scale = operand(call.grad_params, vectors, x.size(1));
  merge_rows(p.outer, p.inner, {&p.x, &p.mean, &p.log_scale, &p.grad_x, &p.grad_mean, &p.grad_log_scale});
  return call;
}

}  // namespace flowops
