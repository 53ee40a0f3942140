// The CPU kernels that the dispatcher calls, each defined in <op>_cpu.cpp: torch/library.h is compiled once.
#include <torch/library.h>

#include "ops/actnorm.h"
#include "ops/affine_coupling.h"
#include "ops/dequantize_logit.h"
#include "ops/gaussian_log_prob.h"
#include "ops/gaussian_rsample.h"
#include "ops/invertible_conv1x1.h"
#include "ops/invertible_conv1x1_prepare.h"
#include "ops/linear_attention.h"
#include "ops/logistic_mixture_log_prob.h"
#include "ops/mlp.h"
#include "ops/rational_quadratic_spline.h"
#include "ops/spectral_norm.h"

namespace flowops {

decltype(actnorm) actnorm_cpu;
decltype(actnorm_backward) actnorm_backward_cpu;
decltype(actnorm_statistics) actnorm_statistics_cpu;
decltype(affine_coupling) affine_coupling_cpu;
decltype(affine_coupling_backward) affine_coupling_backward_cpu;
decltype(dequantize_logit) dequantize_logit_cpu;
decltype(dequantize_logit_backward) dequantize_logit_backward_cpu;
decltype(uniform_noise) uniform_noise_cpu;
decltype(gaussian_log_prob) gaussian_log_prob_cpu;
decltype(gaussian_log_prob_backward) gaussian_log_prob_backward_cpu;
decltype(gaussian_rsample) gaussian_rsample_cpu;
decltype(gaussian_rsample_backward) gaussian_rsample_backward_cpu;
decltype(gaussian_noise) gaussian_noise_cpu;
decltype(invertible_conv1x1) invertible_conv1x1_cpu;
decltype(invertible_conv1x1_backward) invertible_conv1x1_backward_cpu;
decltype(invertible_conv1x1_lu) invertible_conv1x1_lu_cpu;
decltype(invertible_conv1x1_full) invertible_conv1x1_full_cpu;
decltype(invertible_conv1x1_lu_backward) invertible_conv1x1_lu_backward_cpu;
decltype(invertible_conv1x1_full_backward) invertible_conv1x1_full_backward_cpu;
decltype(linear_attention) linear_attention_cpu;
decltype(linear_attention_backward) linear_attention_backward_cpu;
decltype(logistic_mixture_log_prob) logistic_mixture_log_prob_cpu;
decltype(logistic_mixture_log_prob_backward) logistic_mixture_log_prob_backward_cpu;
decltype(mlp) mlp_cpu;
decltype(mlp_backward) mlp_backward_cpu;
decltype(rational_quadratic_spline) rational_quadratic_spline_cpu;
decltype(rational_quadratic_spline_backward) rational_quadratic_spline_backward_cpu;
decltype(spectral_norm) spectral_norm_cpu;
decltype(spectral_norm_backward) spectral_norm_backward_cpu;

TORCH_LIBRARY_IMPL(flowops, CPU, m) {
  m.impl("actnorm", &actnorm_cpu);
  m.impl("actnorm_backward", &actnorm_backward_cpu);
  m.impl("actnorm_statistics", &actnorm_statistics_cpu);
  m.impl("affine_coupling", &affine_coupling_cpu);
  m.impl("affine_coupling_backward", &affine_coupling_backward_cpu);
  m.impl("dequantize_logit", &dequantize_logit_cpu);
  m.impl("dequantize_logit_backward", &dequantize_logit_backward_cpu);
  m.impl("uniform_noise", &uniform_noise_cpu);
  m.impl("gaussian_log_prob", &gaussian_log_prob_cpu);
  m.impl("gaussian_log_prob_backward", &gaussian_log_prob_backward_cpu);
  m.impl("gaussian_rsample", &gaussian_rsample_cpu);
  m.impl("gaussian_rsample_backward", &gaussian_rsample_backward_cpu);
  m.impl("gaussian_noise", &gaussian_noise_cpu);
  m.impl("invertible_conv1x1", &invertible_conv1x1_cpu);
  m.impl("invertible_conv1x1_backward", &invertible_conv1x1_backward_cpu);
  m.impl("invertible_conv1x1_lu", &invertible_conv1x1_lu_cpu);
  m.impl("invertible_conv1x1_full", &invertible_conv1x1_full_cpu);
  m.impl("invertible_conv1x1_lu_backward", &invertible_conv1x1_lu_backward_cpu);
  m.impl("invertible_conv1x1_full_backward", &invertible_conv1x1_full_backward_cpu);
  m.impl("linear_attention", &linear_attention_cpu);
  m.impl("linear_attention_backward", &linear_attention_backward_cpu);
  m.impl("logistic_mixture_log_prob", &logistic_mixture_log_prob_cpu);
  m.impl("logistic_mixture_log_prob_backward", &logistic_mixture_log_prob_backward_cpu);
  m.impl("mlp", &mlp_cpu);
  m.impl("mlp_backward", &mlp_backward_cpu);
  m.impl("rational_quadratic_spline", &rational_quadratic_spline_cpu);
  m.impl("rational_quadratic_spline_backward", &rational_quadratic_spline_backward_cpu);
  m.impl("spectral_norm", &spectral_norm_cpu);
  m.impl("spectral_norm_backward", &spectral_norm_backward_cpu);
}

}  // namespace flowops
