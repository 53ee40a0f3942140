#include <ATen/ops/_linalg_slogdet.h>
#include <ATen/ops/linalg_inv_ex.h>

#include "common/cuda_host.h"
#include "cuda/invertible_conv1x1_prepare_launch.h"
#include "ops/invertible_conv1x1_prepare.h"

namespace flowops {
namespace {

using at::Tensor;
using at::TensorList;

bool too_large(const Tensor& matrix) { return matrix.size(0) > kMaxFactoredChannels; }

// W^-1 in the arithmetic type, without the check of success that would wait for the device.
Tensor invert(const Tensor& matrix) {
  const auto wide = accumulation_type(matrix.scalar_type());
  return std::get<0>(at::linalg_inv_ex(matrix.to(wide), false)).contiguous();
}

struct BackwardLayers {
  std::vector<LayerBackward> layers;
  TensorVector held;

  // `weight` is empty for LU layers, and where the inverse matrix is not needed.
  BackwardLayers(const std::vector<PreparedLayerBackward>& prepared, const Tensor& like, TensorList weight) {
    for (size_t i = 0; i < prepared.size(); ++i) {
      const int64_t n = prepared[i].forward.channels;
      held.push_back(like.new_empty({2, n, n}));
      LayerBackward entry{prepared[i], held.back().data_ptr()};
      if (!weight.empty() && too_large(weight[i])) {
        held.push_back(invert(weight[i]));
        entry.inverse = held.back().const_data_ptr();
      }
      layers.push_back(entry);
    }
  }
};

}  // namespace

PreparedWeights invertible_conv1x1_lu_cuda(TensorList lower, TensorList upper, TensorList log_s,
                                           TensorList sign, TensorList permutation, TensorList actnorm_bias,
                                           TensorList actnorm_log_scale, bool inverse) {
  check_invertible_conv1x1_lu_inputs(lower, upper, log_s, sign, permutation, actnorm_bias, actnorm_log_scale);
  const DeviceGuard guard(lower[0]);
  const auto call = prepare_layers(lower, actnorm_bias, actnorm_log_scale, [&](LayerStore& store, size_t i) {
    return lu_layer(store, lower, upper, log_s, sign, permutation, i);
  });
  check_launch(launch_prepare_lu(storage_type(call.logdet.scalar_type()), call.layers.data(),
                                 call.layers.size(), inverse, current_stream()),
               kInvertibleConv1x1Lu);
  return call.result();
}

PreparedWeights invertible_conv1x1_full_cuda(TensorList weight, TensorList actnorm_bias,
                                             TensorList actnorm_log_scale, bool inverse) {
  check_invertible_conv1x1_full_inputs(weight, actnorm_bias, actnorm_log_scale);
  const DeviceGuard guard(weight[0]);
  const auto call = prepare_layers(weight, actnorm_bias, actnorm_log_scale,
                                   [&](LayerStore& store, size_t i) { return full_layer(store, weight, i); });
  std::vector<FullLayer> layers;
  TensorVector given;
  for (size_t i = 0; i < weight.size(); ++i) {
    FullLayer entry{call.layers[i]};
    if (too_large(weight[i])) {
      const auto wide = weight[i].to(call.logdet.scalar_type());
      given.push_back(std::get<1>(at::_linalg_slogdet(wide)));
      entry.log_abs_det = given.back().const_data_ptr();
      if (inverse) {
        given.push_back(invert(weight[i]));
        entry.inverse = given.back().const_data_ptr();
      }
    }
    layers.push_back(entry);
  }
  check_launch(launch_prepare_full(storage_type(call.logdet.scalar_type()), layers.data(), layers.size(),
                                   inverse, current_stream()),
               kInvertibleConv1x1Full);
  return call.result();
}

std::tuple<TensorVector, TensorVector, TensorVector, TensorVector, TensorVector>
invertible_conv1x1_lu_backward_cuda(TensorList grad_weight, TensorList grad_bias, const Tensor& grad_logdet,
                                    TensorList result, TensorList lower, TensorList upper, TensorList log_s,
                                    TensorList sign, TensorList permutation, TensorList actnorm_bias,
                                    TensorList actnorm_log_scale, bool inverse) {
  check_invertible_conv1x1_lu_inputs(lower, upper, log_s, sign, permutation, actnorm_bias, actnorm_log_scale);
  check_prepared_gradients(kInvertibleConv1x1Lu, grad_weight, grad_bias, grad_logdet, result, lower,
                           actnorm_bias);
  const DeviceGuard guard(lower[0]);
  const auto call =
      prepare_layers_backward(grad_weight, grad_bias, grad_logdet, result, log_s, actnorm_bias,
                              actnorm_log_scale, [&](LayerStore& store, size_t i) {
                                return lu_layer(store, lower, upper, log_s, sign, permutation, i);
                              });
  const BackwardLayers entries(call.layers, grad_logdet, {});
  check_launch(launch_prepare_lu_backward(storage_type(grad_logdet.scalar_type()), entries.layers.data(),
                                          entries.layers.size(), inverse, current_stream()),
               kInvertibleConv1x1Lu);
  const auto type = lower[0].scalar_type();
  return {cast_all(call.lower, type), cast_all(call.upper, type), cast_all(call.log_s, type),
          cast_all(call.actnorm_bias, type), cast_all(call.actnorm_log_scale, type)};
}

std::tuple<TensorVector, TensorVector, TensorVector> invertible_conv1x1_full_backward_cuda(
    TensorList grad_weight, TensorList grad_bias, const Tensor& grad_logdet, TensorList result,
    TensorList weight, TensorList actnorm_bias, TensorList actnorm_log_scale, bool inverse) {
  check_invertible_conv1x1_full_inputs(weight, actnorm_bias, actnorm_log_scale);
  check_prepared_gradients(kInvertibleConv1x1Full, grad_weight, grad_bias, grad_logdet, result, weight,
                           actnorm_bias);
  const DeviceGuard guard(weight[0]);
  const auto call = prepare_layers_backward(
      grad_weight, grad_bias, grad_logdet, result, {}, actnorm_bias, actnorm_log_scale,
      [&](LayerStore& store, size_t i) { return full_layer(store, weight, i); });
  const BackwardLayers entries(call.layers, grad_logdet, inverse ? TensorList() : weight);
  check_launch(launch_prepare_full_backward(storage_type(grad_logdet.scalar_type()), entries.layers.data(),
                                            entries.layers.size(), inverse, current_stream()),
               kInvertibleConv1x1Full);
  const auto type = weight[0].scalar_type();
  return {cast_all(call.full, type), cast_all(call.actnorm_bias, type),
          cast_all(call.actnorm_log_scale, type)};
}

}  // namespace flowops
