// affine_coupling: contract, checks and operands, shared by the backends.
//
// x (B, C, *S); params (B, 2n, *S), or (B, n, *S) for an additive coupling; channels [start, start + n) of x
// are moved, the others copied. Returns z like x and logdet (B,), nats, in the accumulation type.
#pragma once

#include <ATen/core/Tensor.h>

#include <cmath>
#include <optional>
#include <tuple>

#include "common/checks.h"
#include "common/layout.h"
#include "ops/affine_coupling_params.h"

namespace flowops {

enum class ParamsLayout : int {
  kScaleShift = 0,
  kShiftScale = 1,
  kScaleShiftInterleaved = 2,
  kShiftScaleInterleaved = 3,
};

// The plain arguments of the op, in the order of its schema.
struct CouplingOptions {
  int64_t start, scale, order, layout;
  bool inverse;
  ScaleConstants constants;

  ScaleMap scale_map() const {
    const auto map = static_cast<ScaleMap>(scale);
    return map == ScaleMap::kSigmoid && constants.floor > 0 ? ScaleMap::kFlooredSigmoid : map;
  }
  // log s = limit f(gain raw), where the limit may be learned.
  bool bounded() const {
    const auto map = scale_map();
    return map == ScaleMap::kTanhExp || map == ScaleMap::kAtanExp || map == ScaleMap::kSoftsignExp;
  }
  bool additive() const { return scale_map() == ScaleMap::kAdditive; }
  bool shift_then_scale() const { return order == 1; }
  bool shift_first() const { return shift_then_scale() != inverse; }
  bool interleaved() const { return layout >= static_cast<int64_t>(ParamsLayout::kScaleShiftInterleaved); }
  bool scale_leads() const { return layout % 2 == 0; }
  int64_t moved(const at::Tensor& params) const { return additive() ? params.size(1) : params.size(1) / 2; }

  // Where the raw scales (or the shifts) lie among the channels of params.
  int64_t first_channel(bool of_scale, int64_t n) const {
    if (additive()) return 0;
    const int64_t index = of_scale == scale_leads() ? 0 : 1;
    return interleaved() ? index : index * n;
  }
  int64_t channel_step() const { return !additive() && interleaved() ? 2 : 1; }
};

std::tuple<at::Tensor, at::Tensor> affine_coupling(const at::Tensor& x, const at::Tensor& params,
                                                   const OptionalTensor& amplitude,
                                                   const OptionalTensor& mask, const OptionalTensor& logdet,
                                                   int64_t start, int64_t scale, int64_t order,
                                                   int64_t layout, bool inverse, double gain = 1,
                                                   double limit = 1, double floor = 0);

std::tuple<at::Tensor, at::Tensor, at::Tensor> affine_coupling_backward(
    const at::Tensor& grad_z, const at::Tensor& grad_logdet, const at::Tensor& saved,
    const at::Tensor& params, const OptionalTensor& amplitude, const OptionalTensor& mask, int64_t start,
    int64_t scale, int64_t order, int64_t layout, bool inverse, double gain = 1, double limit = 1,
    double floor = 0);

inline constexpr const char* kAffineCoupling = "affine_coupling";

inline bool broadcasts_to(at::IntArrayRef shape, at::IntArrayRef target) {
  if (shape.size() > target.size()) return false;
  for (size_t i = 1; i <= shape.size(); ++i) {
    const int64_t size = shape[shape.size() - i];
    if (size != 1 && size != target[target.size() - i]) return false;
  }
  return true;
}

inline void check_scale(const CouplingOptions& options) {
  const char* op = kAffineCoupling;
  FLOWOPS_CHECK(op, options.scale >= 0 && options.scale <= 7, "scale must be 0 to 7, got ", options.scale);
  const auto& [gain, limit, floor] = options.constants;
  const bool softplus = options.scale_map() == ScaleMap::kSoftplus;
  const bool sigmoid = static_cast<ScaleMap>(options.scale) == ScaleMap::kSigmoid;
  FLOWOPS_CHECK(op, options.bounded() ? std::isfinite(gain) && gain != 0 : gain == 1,
                "gain must be finite and not 0 with a bounded scale, else 1, got ", gain);
  FLOWOPS_CHECK(op, options.bounded() ? std::isfinite(limit) && limit > 0 : softplus || limit == 1,
                "limit must be finite and positive with a bounded scale, else 1, got ", limit);
  FLOWOPS_CHECK(op,
                std::isfinite(floor) && (softplus  ? floor > 0
                                         : sigmoid ? floor >= 0
                                                   : floor == 0),
                "floor must be positive with softplus, at least 0 with sigmoid, else 0, got ", floor);
  FLOWOPS_CHECK(op, !softplus || limit > floor, "limit must be above floor, ", floor, ", got ", limit);
}

inline void check_affine_coupling_params(const at::Tensor& x, const at::Tensor& params,
                                         const OptionalTensor& amplitude, const OptionalTensor& mask,
                                         const CouplingOptions& options) {
  const char* op = kAffineCoupling;
  check_scale(options);
  FLOWOPS_CHECK(op, options.order == 0 || options.order == 1, "order must be 0 or 1, got ", options.order);
  FLOWOPS_CHECK(op, options.layout >= 0 && options.layout <= 3, "layout must be 0 to 3, got ",
                options.layout);
  check_data(op, "x", x);
  check_same_dtype(op, "params", params, x);
  check_same_device(op, "params", params, x);
  FLOWOPS_CHECK(
      op,
      params.dim() == x.dim() && params.size(0) == x.size(0) && params.sizes().slice(2) == x.sizes().slice(2),
      "params must have the batch and pixel sizes of x, ", x.sizes(), ", got ", params.sizes());
  FLOWOPS_CHECK(op, options.additive() || params.size(1) % 2 == 0,
                "params must have an even number of channels (scales and shifts), got ", params.size(1));
  const int64_t n = options.moved(params);
  FLOWOPS_CHECK(op, options.start >= 0 && options.start + n <= x.size(1), "start must leave room for the ", n,
                " moved channels among the ", x.size(1), " of x, got ", options.start);
  if (amplitude.has_value()) {
    FLOWOPS_CHECK(op, options.bounded(),
                  "amplitude must be None unless scale is tanh_exp, atan_exp or softsign_exp, got a tensor");
    FLOWOPS_CHECK(op, amplitude->dim() == 0 || (amplitude->dim() == 1 && amplitude->size(0) == n),
                  "amplitude must have shape [] or [", n, "], got ", amplitude->sizes());
    FLOWOPS_CHECK(op, amplitude->is_floating_point(), "amplitude must be floating-point, got ",
                  amplitude->scalar_type());
    check_same_device(op, "amplitude", *amplitude, x);
  }
  if (mask.has_value()) {
    FLOWOPS_CHECK(op, mask->scalar_type() == at::kBool, "mask must be bool, got ", mask->scalar_type());
    auto target = x.sizes().slice(1).vec();
    target[0] = n;
    FLOWOPS_CHECK(op, broadcasts_to(mask->sizes(), target), "mask must broadcast to ",
                  at::IntArrayRef(target), ", got ", mask->sizes());
    check_same_device(op, "mask", *mask, x);
  }
}

inline void check_affine_coupling_inputs(const at::Tensor& x, const at::Tensor& params,
                                         const OptionalTensor& amplitude, const OptionalTensor& mask,
                                         const OptionalTensor& logdet, const CouplingOptions& options) {
  check_affine_coupling_params(x, params, amplitude, mask, options);
  if (logdet.has_value()) check_logdet(kAffineCoupling, *logdet, x);
}

inline void check_affine_coupling_backward_inputs(const at::Tensor& grad_z, const at::Tensor& grad_logdet,
                                                  const at::Tensor& saved, const at::Tensor& params,
                                                  const OptionalTensor& amplitude, const OptionalTensor& mask,
                                                  const CouplingOptions& options) {
  check_affine_coupling_params(saved, params, amplitude, mask, options);
  FLOWOPS_CHECK(kAffineCoupling, !options.additive(), "scale must not be additive in the backward op, got 0");
  check_same_dtype(kAffineCoupling, "grad_z", grad_z, saved);
  FLOWOPS_CHECK(kAffineCoupling, grad_z.sizes() == saved.sizes(), "grad_z must have shape ", saved.sizes(),
                ", got ", grad_z.sizes());
  check_logdet(kAffineCoupling, grad_logdet, saved);
}

}  // namespace flowops
