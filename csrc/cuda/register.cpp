// The CUDA kernels that the dispatcher calls, each defined in <op>_cuda.cpp: torch/library.h is compiled
// once.
#include <torch/library.h>

#include "common/cuda_host.h"
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

decltype(actnorm) actnorm_cuda;
decltype(actnorm_backward) actnorm_backward_cuda;
decltype(actnorm_statistics) actnorm_statistics_cuda;
decltype(affine_coupling) affine_coupling_cuda;
decltype(affine_coupling_backward) affine_coupling_backward_cuda;
decltype(dequantize_logit) dequantize_logit_cuda;
decltype(dequantize_logit_backward) dequantize_logit_backward_cuda;
decltype(uniform_noise) uniform_noise_cuda;
decltype(gaussian_log_prob) gaussian_log_prob_cuda;
decltype(gaussian_log_prob_backward) gaussian_log_prob_backward_cuda;
decltype(gaussian_rsample) gaussian_rsample_cuda;
decltype(gaussian_rsample_backward) gaussian_rsample_backward_cuda;
decltype(gaussian_noise) gaussian_noise_cuda;
decltype(invertible_conv1x1) invertible_conv1x1_cuda;
decltype(invertible_conv1x1_backward) invertible_conv1x1_backward_cuda;
decltype(invertible_conv1x1_lu) invertible_conv1x1_lu_cuda;
decltype(invertible_conv1x1_full) invertible_conv1x1_full_cuda;
decltype(invertible_conv1x1_lu_backward) invertible_conv1x1_lu_backward_cuda;
decltype(invertible_conv1x1_full_backward) invertible_conv1x1_full_backward_cuda;
decltype(linear_attention) linear_attention_cuda;
decltype(linear_attention_backward) linear_attention_backward_cuda;
decltype(logistic_mixture_log_prob) logistic_mixture_log_prob_cuda;
decltype(logistic_mixture_log_prob_backward) logistic_mixture_log_prob_backward_cuda;
decltype(mlp) mlp_cuda;
decltype(mlp_backward) mlp_backward_cuda;
decltype(rational_quadratic_spline) rational_quadratic_spline_cuda;
decltype(rational_quadratic_spline_backward) rational_quadratic_spline_backward_cuda;
decltype(spectral_norm) spectral_norm_cuda;
decltype(spectral_norm_backward) spectral_norm_backward_cuda;

TORCH_LIBRARY_IMPL(flowops, FLOWOPS_CUDA_KEY, m) {
  m.impl("actnorm", &actnorm_cuda);
  m.impl("actnorm_backward", &actnorm_backward_cuda);
  m.impl("actnorm_statistics", &actnorm_statistics_cuda);
  m.impl("affine_coupling", &affine_coupling_cuda);
  m.impl("affine_coupling_backward", &affine_coupling_backward_cuda);
  m.impl("dequantize_logit", &dequantize_logit_cuda);
  m.impl("dequantize_logit_backward", &dequantize_logit_backward_cuda);
  m.impl("uniform_noise", &uniform_noise_cuda);
  m.impl("gaussian_log_prob", &gaussian_log_prob_cuda);
  m.impl("gaussian_log_prob_backward", &gaussian_log_prob_backward_cuda);
  m.impl("gaussian_rsample", &gaussian_rsample_cuda);
  m.impl("gaussian_rsample_backward", &gaussian_rsample_backward_cuda);
  m.impl("gaussian_noise", &gaussian_noise_cuda);
  m.impl("invertible_conv1x1", &invertible_conv1x1_cuda);
  m.impl("invertible_conv1x1_backward", &invertible_conv1x1_backward_cuda);
  m.impl("invertible_conv1x1_lu", &invertible_conv1x1_lu_cuda);
  m.impl("invertible_conv1x1_full", &invertible_conv1x1_full_cuda);
  m.impl("invertible_conv1x1_lu_backward", &invertible_conv1x1_lu_backward_cuda);
  m.impl("invertible_conv1x1_full_backward", &invertible_conv1x1_full_backward_cuda);
  m.impl("linear_attention", &linear_attention_cuda);
  m.impl("linear_attention_backward", &linear_attention_backward_cuda);
  m.impl("logistic_mixture_log_prob", &logistic_mixture_log_prob_cuda);
  m.impl("logistic_mixture_log_prob_backward", &logistic_mixture_log_prob_backward_cuda);
  m.impl("mlp", &mlp_cuda);
  m.impl("mlp_backward", &mlp_backward_cuda);
  m.impl("rational_quadratic_spline", &rational_quadratic_spline_cuda);
  m.impl("rational_quadratic_spline_backward", &rational_quadratic_spline_backward_cuda);
  m.impl("spectral_norm", &spectral_norm_cuda);
  m.impl("spectral_norm_backward", &spectral_norm_backward_cuda);
}

}  // namespace flowops
