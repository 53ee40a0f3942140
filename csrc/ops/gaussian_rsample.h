// gaussian_rsample: contract, checks and operands, shared by the backends.
//
// z = mean + std e for mean, scale (B, C, *S), e the standard normal numbers of the stream `key`, two int64:
// seed and offset; element i of z, counted in row-major order whatever the layout, takes number i
// (math/philox.h). kl (B,) is the divergence from the prior per sample, nats in the accumulation type, or
// zeros unless with_kl. The prior, of the shape and scale form of the posterior, is N(0, I) where it is
// absent; `residual` reads mean and scale relative to it. In the place of mean and scale stands params
// (B, 2C, *S), a net's output whole: the means, then the scales. The formulas are those of
// math/gaussian_rsample.h.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

#include "common/checks.h"
#include "common/layout.h"
#include "ops/gaussian_rsample_params.h"
#include "ops/random_key.h"

namespace flowops {

std::tuple<at::Tensor, at::Tensor> gaussian_rsample(const OptionalTensor& mean, const OptionalTensor& scale,
                                                    const at::Tensor& key, const OptionalTensor& prior_mean,
                                                    const OptionalTensor& prior_scale,
                                                    const OptionalTensor& params, int64_t form, bool residual,
                                                    bool with_kl);

// Of mean, scale, the prior's and params; those of absent arguments are empty, and the prior's where it is
// not used. The noise is made again from `key`.
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> gaussian_rsample_backward(
    const at::Tensor& grad_z, const at::Tensor& grad_kl, const OptionalTensor& mean,
    const OptionalTensor& scale, const at::Tensor& key, const OptionalTensor& prior_mean,
    const OptionalTensor& prior_scale, const OptionalTensor& params, int64_t form, bool residual,
    bool with_kl);

// The first normal numbers of the stream `key`, as a contiguous tensor on its device.
at::Tensor gaussian_noise(const at::Tensor& key, at::IntArrayRef size, at::ScalarType dtype);

inline constexpr const char* kGaussianRsample = "gaussian_rsample";

inline void check_like_mean(const char* name, const at::Tensor& t, const at::Tensor& mean) {
  FLOWOPS_CHECK(kGaussianRsample, t.sizes() == mean.sizes(), name, " must have shape ", mean.sizes(),
                " (like mean), got ", t.sizes());
  FLOWOPS_CHECK(kGaussianRsample, t.scalar_type() == mean.scalar_type(), name, " must be ",
                mean.scalar_type(), " (like mean), got ", t.scalar_type());
  FLOWOPS_CHECK(kGaussianRsample, t.device() == mean.device(), name, " must be on ", mean.device(),
                " (like mean), got ", t.device());
}

// The Gaussians of a call: mean and scale as they are given, or the halves of params.
struct Posterior {
  at::Tensor mean, scale, params;  // the last undefined where it is not given
};

inline Posterior posterior_of(const OptionalTensor& mean, const OptionalTensor& scale,
                              const OptionalTensor& params) {
  if (!params) {
    FLOWOPS_CHECK(kGaussianRsample, mean && scale, "mean and scale must be given where params is None, got ",
                  mean || scale ? "one of them" : "neither");
    return {*mean, *scale, {}};
  }
  FLOWOPS_CHECK(kGaussianRsample, !mean && !scale,
                "params must be None where mean or scale is given, got a tensor");
  FLOWOPS_CHECK(kGaussianRsample, params->dim() >= 2 && params->size(1) % 2 == 0,
                "params must have shape (batch, 2 channels, ...), got ", params->sizes());
  check_data(kGaussianRsample, "params", *params);
  const auto whole = walkable(*params);
  const int64_t channels = whole.size(1) / 2;
  return {whole.narrow(1, 0, channels), whole.narrow(1, channels, channels), whole};
}

inline void check_gaussian_rsample_inputs(const Posterior& q, const at::Tensor& key,
                                          const OptionalTensor& prior_mean, const OptionalTensor& prior_scale,
                                          int64_t form, bool residual) {
  const at::Tensor& mean = q.mean;
  check_data(kGaussianRsample, "mean", mean);
  check_like_mean("scale", q.scale, mean);
  check_key(kGaussianRsample, key);
  FLOWOPS_CHECK(kGaussianRsample, key.device() == mean.device(), "key must be on ", mean.device(),
                " (like mean), got ", key.device());
  FLOWOPS_CHECK(kGaussianRsample, form >= 0 && form < kGaussianScaleForms, "form must be 0 to ",
                kGaussianScaleForms - 1, ", got ", form);
  FLOWOPS_CHECK(kGaussianRsample, prior_mean.has_value() == prior_scale.has_value(),
                "prior must have both a mean and a scale, got one of them");
  FLOWOPS_CHECK(kGaussianRsample, prior_mean.has_value() || !residual,
                "prior must be given for the residual form, got none");
  if (prior_mean) check_like_mean("prior mean", *prior_mean, mean);
  if (prior_scale) check_like_mean("prior scale", *prior_scale, mean);
}

inline void check_gaussian_rsample_backward_inputs(const at::Tensor& grad_z, const at::Tensor& grad_kl,
                                                   const Posterior& q, const at::Tensor& key,
                                                   const OptionalTensor& prior_mean,
                                                   const OptionalTensor& prior_scale, int64_t form,
                                                   bool residual) {
  check_gaussian_rsample_inputs(q, key, prior_mean, prior_scale, form, residual);
  const at::Tensor& mean = q.mean;
  check_like_mean("grad_z", grad_z, mean);
  const auto wide = accumulation_type(mean.scalar_type());
  FLOWOPS_CHECK(kGaussianRsample, grad_kl.dim() == 1 && grad_kl.size(0) == mean.size(0),
                "grad_kl must have shape [", mean.size(0), "] (one value a sample), got ", grad_kl.sizes());
  FLOWOPS_CHECK(kGaussianRsample, grad_kl.scalar_type() == wide, "grad_kl must be ", wide, ", got ",
                grad_kl.scalar_type());
}

inline void check_gaussian_noise_inputs(const at::Tensor& key, at::ScalarType dtype) {
  check_key("randn", key);
  FLOWOPS_CHECK("randn",
                dtype == at::kDouble || dtype == at::kFloat || dtype == at::kHalf || dtype == at::kBFloat16,
                "dtype must be float64, float32, float16 or bfloat16, got ", dtype);
}

// Tensors that must live until the kernel has run, beside the params that point into them.
struct GaussianRsampleCall {
  at::Tensor mean, scale, key, prior_mean, prior_scale, z, kl;
  GaussianRsampleParams p;
};

struct GaussianRsampleBackwardCall {
  at::Tensor grad_z, grad_kl, mean, scale, key, prior_mean, prior_scale;
  at::Tensor grad_mean, grad_scale, grad_prior_mean, grad_prior_scale, grad_params;
  GaussianRsampleBackwardParams p;
};

// What forward and backward have in common. Returns whether samples are vectors.
template <typename Call>
bool prepare_gaussians(Call& call, const Posterior& q, const at::Tensor& key,
                       const OptionalTensor& prior_mean, const OptionalTensor& prior_scale, int64_t form,
                       bool residual, bool with_kl) {
  auto& p = call.p;
  call.mean = walkable(q.mean), call.scale = walkable(q.scale), call.key = key.contiguous();
  const bool vectors = walk_planar(p, q.mean);
  p.form = static_cast<GaussianScaleForm>(form);
  p.residual = residual, p.with_kl = with_kl;
  p.key = call.key.template const_data_ptr<int64_t>();
  p.mean = operand(call.mean, vectors);
  p.scale = operand(call.scale, vectors);
  if (!prior_mean || !(residual || with_kl)) return vectors;
  call.prior_mean = walkable(*prior_mean), call.prior_scale = walkable(*prior_scale);
  p.prior_mean = operand(call.prior_mean, vectors);
  p.prior_scale = operand(call.prior_scale, vectors);
  return vectors;
}

inline GaussianRsampleCall prepare_gaussian_rsample(const Posterior& q, const at::Tensor& key,
                                                    const OptionalTensor& prior_mean,
                                                    const OptionalTensor& prior_scale, int64_t form,
                                                    bool residual, bool with_kl) {
  GaussianRsampleCall call;
  const bool vectors = prepare_gaussians(call, q, key, prior_mean, prior_scale, form, residual, with_kl);
  const auto options = q.mean.options().dtype(accumulation_type(q.mean.scalar_type()));
  call.z = empty_like_layout(call.mean);
  call.kl = q.mean.new_empty({q.mean.size(0)}, options);
  auto& p = call.p;
  p.z = operand(call.z, vectors);
  p.kl = call.kl.data_ptr();
  merge_rows(p.outer, p.inner, {&p.mean, &p.scale, &p.prior_mean, &p.prior_scale, &p.z});
  return call;
}

inline GaussianRsampleBackwardCall prepare_gaussian_rsample_backward(
    const at::Tensor& grad_z, const at::Tensor& grad_kl, const Posterior& q, const at::Tensor& key,
    const OptionalTensor& prior_mean, const OptionalTensor& prior_scale, int64_t form, bool residual,
    bool with_kl) {
  GaussianRsampleBackwardCall call;
  const bool vectors = prepare_gaussians(call, q, key, prior_mean, prior_scale, form, residual, with_kl);
  call.grad_z = walkable(grad_z);
  call.grad_kl = grad_kl.contiguous();
  auto& p = call.p;
  const auto allocate = [&](const at::Tensor& like, Operand& target) {
    auto grad = empty_like_layout(like);
    target = operand(grad, vectors);
    return grad;
  };
  p.grad_z = operand(call.grad_z, vectors);
  p.grad_kl = call.grad_kl.const_data_ptr();
  const auto none = [&] { return call.mean.new_empty({0}); };
  if (q.params.defined()) {
    call.grad_params = allocate(q.params, p.grad_mean);
    p.grad_scale = operand(call.grad_params, vectors, q.mean.size(1));
    call.grad_mean = none(), call.grad_scale = none();
  } else {
    call.grad_mean = allocate(call.mean, p.grad_mean);
    call.grad_scale = allocate(call.scale, p.grad_scale);
    call.grad_params = none();
  }
  if (call.prior_mean.defined()) {
    call.grad_prior_mean = allocate(call.prior_mean, p.grad_prior_mean);
    call.grad_prior_scale = allocate(call.prior_scale, p.grad_prior_scale);
  } else {
    call.grad_prior_mean = none(), call.grad_prior_scale = none();
  }
  merge_rows(p.outer, p.inner,
             {&p.grad_z, &p.mean, &p.scale, &p.prior_mean, &p.prior_scale, &p.grad_mean, &p.grad_scale,
              &p.grad_prior_mean, &p.grad_prior_scale});
  return call;
}

}  // namespace flowops
