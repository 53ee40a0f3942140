#include "ops/gaussian_rsample.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include <limits>

namespace flowops {

std::tuple<at::Tensor, at::Tensor> gaussian_rsample(const OptionalTensor& mean, const OptionalTensor& scale,
                                                    const at::Tensor& key, const OptionalTensor& prior_mean,
                                                    const OptionalTensor& prior_scale,
                                                    const OptionalTensor& params, int64_t form, bool residual,
                                                    bool with_kl) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("flowops::gaussian_rsample", "")
                             .typed<decltype(gaussian_rsample)>();
  return op.call(mean, scale, key, prior_mean, prior_scale, params, form, residual, with_kl);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> gaussian_rsample_backward(
    const at::Tensor& grad_z, const at::Tensor& grad_kl, const OptionalTensor& mean,
    const OptionalTensor& scale, const at::Tensor& key, const OptionalTensor& prior_mean,
    const OptionalTensor& prior_scale, const OptionalTensor& params, int64_t form, bool residual,
    bool with_kl) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("flowops::gaussian_rsample_backward", "")
                             .typed<decltype(gaussian_rsample_backward)>();
  return op.call(grad_z, grad_kl, mean, scale, key, prior_mean, prior_scale, params, form, residual, with_kl);
}

at::Tensor gaussian_noise(const at::Tensor& key, at::IntArrayRef size, at::ScalarType dtype) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("flowops::gaussian_noise", "")
                             .typed<at::Tensor(const at::Tensor&, c10::SymIntArrayRef, at::ScalarType)>();
  return op.call(key, c10::fromIntArrayRefSlow(size), dtype);
}

at::Tensor random_key(const at::Tensor& like) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("flowops::random_key", "").typed<decltype(random_key)>();
  return op.call(like);
}

namespace {

// By torch's own random op, so that CUDA graphs draw anew at each replay and checkpoints draw the same again.
at::Tensor random_key_kernel(const at::Tensor& like) {
  auto key = like.new_empty({2}, like.options().dtype(at::kLong));
  return key.random_(std::numeric_limits<int64_t>::min(), std::optional<int64_t>());
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(flowops, m) {
  m.def(
      "gaussian_rsample(Tensor? mean, Tensor? scale, Tensor key, Tensor? prior_mean, Tensor? prior_scale, "
      "Tensor? params, int form, bool residual, bool with_kl) -> (Tensor, Tensor)");
  m.def(
      "gaussian_rsample_backward(Tensor grad_z, Tensor grad_kl, Tensor? mean, Tensor? scale, Tensor key, "
      "Tensor? prior_mean, Tensor? prior_scale, Tensor? params, int form, bool residual, bool with_kl) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("gaussian_noise(Tensor key, SymInt[] size, ScalarType dtype) -> Tensor");
  m.def("random_key(Tensor like) -> Tensor", {at::Tag::nondeterministic_seeded});
  m.impl("random_key",
         torch::dispatch(c10::DispatchKey::CompositeExplicitAutograd, TORCH_FN(random_key_kernel)));
}

}  // namespace flowops
