// gaussian_rsample: contract, checks and operands, shared by the backends.
//
// z = mean + std e for mean, scale (B, C, *S), e the standard normal numbers of the stream `key`, two int64:
// seed and offset; element i of z, counted in row-major order whatever the layout, takes number i
// (math/philox.h). kl (B,) is the divergence from the prior per sample, nats in the accumulation type, or
// zeros unless with_kl. The prior, of the shape and scale form of the posterior, is N(0, I) where it is
// absent; `residual` reads mean and scale relative to it. The formulas are those of math/gaussian_rsample.h.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

#include "common/checks.h"
#include "common/layout.h"
#include "ops/gaussian_rsample_params.h"
#include "ops/random_key.h"

namespace flowops {

std::tuple<at::Tensor, at::Tensor> gaussian_rsample(const at::Tensor& mean, const at::Tensor& scale,
                                                    const at::Tensor& key,
                                                    const std::optional<at::Tensor>& prior_mean,
                                                    const std::optional<at::Tensor>& prior_scale,
                                                    int64_t form, bool residual, bool with_kl);

// Of mean, scale and the prior's; the last two are empty without a prior. The noise is made again from `key`.
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> gaussian_rsample_backward(
    const at::Tensor& grad_z, const at::Tensor& grad_kl, const at::Tensor& mean, const at::Tensor& scale,
    const at::Tensor& key, const std::optional<at::Tensor>& prior_mean,
    const std::optional<at::Tensor>& prior_scale, int64_t form, bool residual, bool with_kl);

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

inline void check_gaussian_rsample_inputs(const at::Tensor& mean, const at::Tensor& scale,
                                          const at::Tensor& key, const std::optional<at::Tensor>& prior_mean,
                                          const std::optional<at::Tensor>& prior_scale, int64_t form,
                                          bool residual) {
  check_data(kGaussianRsample, "mean", mean);
  check_like_mean("scale", scale, mean);
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
                                                   const at::Tensor& mean, const at::Tensor& scale,
                                                   const at::Tensor& key,
                                                   const std::optional<at::Tensor>& prior_mean,
                                                   const std::optional<at::Tensor>& prior_scale, int64_t form,
                                                   bool residual) {
  check_gaussian_rsample_inputs(mean, scale, key, prior_mean, prior_scale, form, residual);
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
  at::Tensor grad_mean, grad_scale, grad_prior_mean, grad_prior_scale;
  GaussianRsampleBackwardParams p;
};

// What forward and backward have in common. Returns whether samples are vectors.
template <typename Call>
bool prepare_gaussians(Call& call, const at::Tensor& mean, const at::Tensor& scale, const at::Tensor& key,
                       const std::optional<at::Tensor>& prior_mean,
                       const std::optional<at::Tensor>& prior_scale, int64_t form, bool residual,
                       bool with_kl) {
  auto& p = call.p;
  call.mean = walkable(mean), call.scale = walkable(scale), call.key = key.contiguous();
  const bool vectors = walk_planar(p, mean);
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

inline GaussianRsampleCall prepare_gaussian_rsample(const at::Tensor& mean, const at::Tensor& scale,
                                                    const at::Tensor& key,
                                                    const std::optional<at::Tensor>& prior_mean,
                                                    const std::optional<at::Tensor>& prior_scale,
                                                    int64_t form, bool residual, bool with_kl) {
  GaussianRsampleCall call;
  const bool vectors =
      prepare_gaussians(call, mean, scale, key, prior_mean, prior_scale, form, residual, with_kl);
  const auto options = mean.options().dtype(accumulation_type(mean.scalar_type()));
  call.z = empty_like_layout(call.mean);
  call.kl = mean.new_empty({mean.size(0)}, options);
  auto& p = call.p;
  p.z = operand(call.z, vectors);
  p.kl = call.kl.data_ptr();
  merge_rows(p.outer, p.inner, {&p.mean, &p.scale, &p.prior_mean, &p.prior_scale, &p.z});
  return call;
}

inline GaussianRsampleBackwardCall prepare_gaussian_rsample_backward(
    const at::Tensor& grad_z, const at::Tensor& grad_kl, const at::Tensor& mean, const at::Tensor& scale,
    const at::Tensor& key, const std::optional<at::Tensor>& prior_mean,
    const std::optional<at::Tensor>& prior_scale, int64_t form, bool residual, bool with_kl) {
  GaussianRsampleBackwardCall call;
  const bool vectors =
      prepare_gaussians(call, mean, scale, key, prior_mean, prior_scale, form, residual, with_kl);
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
  call.grad_mean = allocate(call.mean, p.grad_mean);
  call.grad_scale = allocate(call.scale, p.grad_scale);
  if (call.prior_mean.defined()) {
    call.grad_prior_mean = allocate(call.prior_mean, p.grad_prior_mean);
    call.grad_prior_scale = allocate(call.prior_scale, p.grad_prior_scale);
  } else {
    call.grad_prior_mean = mean.new_empty({0}), call.grad_prior_scale = mean.new_empty({0});
  }
  merge_rows(p.outer, p.inner,
             {&p.grad_z, &p.mean, &p.scale, &p.prior_mean, &p.prior_scale, &p.grad_mean, &p.grad_scale,
              &p.grad_prior_mean, &p.grad_prior_scale});
  return call;
}

}  // namespace flowops
