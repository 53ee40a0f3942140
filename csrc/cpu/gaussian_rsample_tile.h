// The arithmetic of gaussian_rsample over contiguous tiles, for every scale form. Torch-free.
#pragma once

#include <cstdint>

#include "common/vec_special.h"
#include "cpu/lanes.h"
#include "math/gaussian_rsample.h"
#include "ops/gaussian_rsample_params.h"

namespace flowops {

template <typename T>
struct SampleTile {
  const T *mean, *scale, *prior_mean, *prior_scale, *noise;  // the prior's may be null
  T *z, *kl;                                                 // kl, an element each, is null where not wanted
  int64_t size;
  bool residual;
};

template <typename T>
struct SampleGradientTile {
  const T *grad_z, *mean, *scale, *prior_mean, *prior_scale, *noise;
  const T* grad_kl;  // an element each, null where there is no KL
  T *grad_mean, *grad_scale, *grad_prior_mean, *grad_prior_scale;
  int64_t size;
  bool residual;
};

template <typename T>
using SampleFunction = void (*)(const SampleTile<T>&);
template <typename T>
using SampleGradientFunction = void (*)(const SampleGradientTile<T>&);

template <typename T, typename Scale>
void sample_tile(const SampleTile<T>& t) {
  using V = Vec<T>;
  for_each_lanes<T>(t.size, [&](int64_t i, auto load, auto store) {
    const V mean = load(t.mean + i), raw = load(t.scale + i), std = Scale::std(raw);
    auto prior = standard_prior<V>();
    if (t.prior_mean) {
      prior = gaussian_prior<Scale>(load(t.prior_mean + i), load(t.prior_scale + i), t.kl != nullptr);
    }
    store(t.z + i, gaussian_sample(mean, std, load(t.noise + i), prior, t.residual));
    if (t.kl) store(t.kl + i, gaussian_kl(gaussian_gap<Scale>(mean, raw, std, prior, t.residual)));
  });
}

template <typename T, typename Scale>
void sample_gradient_tile(const SampleGradientTile<T>& t) {
  using V = Vec<T>;
  for_each_lanes<T>(t.size, [&](int64_t i, auto load, auto store) {
    auto prior = standard_prior<V>();
    V prior_raw(0);
    const bool has_prior = t.prior_mean != nullptr, kl = t.grad_kl != nullptr;
    if (has_prior) {
      prior_raw = load(t.prior_scale + i);
      prior = gaussian_prior<Scale>(load(t.prior_mean + i), prior_raw, kl);
    }
    const auto grad = gaussian_gradient<Scale>(load(t.grad_z + i), kl ? load(t.grad_kl + i) : V(0),
                                               load(t.noise + i), load(t.mean + i), load(t.scale + i),
                                               prior_raw, prior, has_prior, t.residual, kl);
    store(t.grad_mean + i, grad.mean);
    store(t.grad_scale + i, grad.scale);
    if (!has_prior) return;
    store(t.grad_prior_mean + i, grad.prior_mean);
    store(t.grad_prior_scale + i, grad.prior_scale);
  });
}

template <typename T>
SampleFunction<T> pick_sample(GaussianScaleForm form) {
  switch (form) {
    case GaussianScaleForm::kLogVariance: return &sample_tile<T, LogVarianceScale>;
    case GaussianScaleForm::kLogStd: return &sample_tile<T, LogStdScale>;
    case GaussianScaleForm::kStd: return &sample_tile<T, StdScale>;
    default: return &sample_tile<T, SoftplusScale>;
  }
}

template <typename T>
SampleGradientFunction<T> pick_sample_gradient(GaussianScaleForm form) {
  switch (form) {
    case GaussianScaleForm::kLogVariance: return &sample_gradient_tile<T, LogVarianceScale>;
    case GaussianScaleForm::kLogStd: return &sample_gradient_tile<T, LogStdScale>;
    case GaussianScaleForm::kStd: return &sample_gradient_tile<T, StdScale>;
    default: return &sample_gradient_tile<T, SoftplusScale>;
  }
}

}  // namespace flowops
