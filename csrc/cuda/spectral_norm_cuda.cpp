#include "common/cuda_host.h"
#include "cuda/spectral_norm_launch.h"
#include "ops/spectral_norm.h"

namespace flowops {
namespace {

// Kernels count rows, columns and tiles with 32 bits.
void check_extents(at::TensorList weight) {
  for (size_t i = 0; i < weight.size(); ++i) {
    FLOWOPS_CHECK(kSpectralNorm, weight[i].numel() <= (int64_t{1} << 31) - 1, "weight[", i,
                  "] must have fewer than 2^31 elements on CUDA, got shape ", weight[i].sizes());
  }
}

// The layers of a call with scratch memory, all in one piece.
template <typename Entry, typename Layer, typename Size>
struct Entries {
  at::Tensor memory;
  std::vector<Entry> list;

  Entries(const std::vector<Layer>& layers, const at::Tensor& like, const Size& size) {
    int64_t total = 0;
    for (const Layer& layer : layers) total += size(layer);
    memory = like.new_empty({total}, like.options().dtype(at::kDouble));
    double* next = memory.mutable_data_ptr<double>();
    for (const Layer& layer : layers) {
      list.push_back({layer, next});
      next += size(layer);
    }
  }
};

}  // namespace

SpectralNormResult spectral_norm_cuda(at::TensorList weight, at::TensorList u, at::TensorList v,
                                      int64_t n_power_iterations, double eps,
                                      std::optional<double> coefficient) {
  check_spectral_norm_inputs(weight, u, v, n_power_iterations, eps, coefficient);
  check_extents(weight);
  const DeviceGuard guard(weight[0]);
  const auto call = prepare_spectral_norm(weight, u, v, {n_power_iterations, eps, coefficient.value_or(0)});
  const auto size = [](const SpectralNormLayer& p) { return spectral_scratch(p.rows, p.columns); };
  const Entries<SpectralNormEntry, SpectralNormLayer, decltype(size)> entries(call.layers, weight[0], size);
  check_launch(launch_spectral_norm(storage_type(weight[0].scalar_type()), entries.list.data(),
                                    entries.list.size(), call.settings, current_stream()),
               kSpectralNorm);
  return call.finish(u, v);
}

TensorVector spectral_norm_backward_cuda(at::TensorList grad_result, const at::Tensor& grad_sigma,
                                         at::TensorList weight, at::TensorList u, at::TensorList v,
                                         const at::Tensor& sigma, std::optional<double> coefficient) {
  check_spectral_norm_backward_inputs(grad_result, grad_sigma, weight, u, v, sigma, coefficient);
  check_extents(weight);
  const DeviceGuard guard(weight[0]);
  SpectralNormSettings settings;
  settings.coefficient = coefficient.value_or(0);
  const auto call = prepare_spectral_norm_backward(grad_result, grad_sigma, weight, u, v, sigma, settings);
  const auto size = [](const SpectralNormLayerBackward& p) { return spectral_backward_scratch(p.rows); };
  const Entries<SpectralNormBackwardEntry, SpectralNormLayerBackward, decltype(size)> entries(
      call.layers, weight[0], size);
  check_launch(launch_spectral_norm_backward(storage_type(weight[0].scalar_type()), entries.list.data(),
                                             entries.list.size(), call.settings, current_stream()),
               kSpectralNorm);
  return call.grad_weight;
}

}  // namespace flowops
