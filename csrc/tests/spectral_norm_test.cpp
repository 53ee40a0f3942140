// spectral_norm through libflowops, against the singular values that ATen computes.
#include "ops/spectral_norm.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <string>

#include "tests/expect_error.h"

namespace flowops {
namespace {

using testing::expect;
using testing::expect_value_error;

struct Layers {
  TensorVector weight, u, v;
};

Layers make_layers() {
  Layers layers;
  for (const auto& sizes : std::vector<std::vector<int64_t>>{{6, 3, 2, 2}, {5, 7}, {1, 4}}) {
    layers.weight.push_back(at::randn(sizes, at::kDouble).requires_grad_());
    layers.u.push_back(at::ones({sizes[0]}, at::kDouble));
    layers.v.push_back(at::ones({layers.weight.back().numel() / sizes[0]}, at::kDouble));
  }
  return layers;
}

void test_values_and_gradients() {
  const auto layers = make_layers();
  const auto [results, u, v, sigma] = spectral_norm(layers.weight, layers.u, layers.v, 2000, 1e-12, {});
  for (size_t i = 0; i < results.size(); ++i) {
    const auto& weight = layers.weight[i];
    const auto exact = at::linalg_matrix_norm(weight.flatten(1), 2);
    expect(at::allclose(sigma[i], exact), "sigma is the largest singular value");
    expect(at::allclose(results[i], weight / exact), "the result is W / sigma");
    const auto ours = torch::autograd::grad({(results[i] * results[i]).sum() + sigma[i]}, {weight}, {}, true);
    const auto wanted = torch::autograd::grad({(weight / exact).square().sum() + exact}, {weight});
    expect(at::allclose(ours[0], wanted[0], 1e-4, 1e-6), "gradient");
  }
  const auto [bounded, u2, v2, same] = spectral_norm(layers.weight, u, v, 1, 1e-12, 0.5);
  for (const auto& weight : bounded) {
    const auto norm = at::linalg_matrix_norm(weight.flatten(1), 2).item<double>();
    expect(norm < 0.5 + 1e-6, "a coefficient bounds the norm");
  }
}

void test_errors() {
  expect_value_error(
      "spectral_norm: v[0] must", "a vector of the wrong length is a ValueError that names op and argument",
      [&] { spectral_norm({at::zeros({2, 4})}, {at::zeros({2})}, {at::zeros({3})}, 1, 1e-12, {}); });
}

}  // namespace
}  // namespace flowops

int main() {
  at::manual_seed(0);
  flowops::test_values_and_gradients();
  flowops::test_errors();
  return flowops::testing::exit_status();
}
