// The ops through libflowops: the product and the weights prepared for all layers, against what ATen
// computes.
#include "ops/invertible_conv1x1.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include "ops/invertible_conv1x1_prepare.h"
#include "tests/expect_error.h"

namespace flowops {
namespace {

using testing::expect;
using testing::expect_value_error;

at::Tensor expected(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  return at::conv2d(x, weight.view({weight.size(0), weight.size(1), 1, 1}), bias);
}

void test_product_and_gradients() {
  for (const int64_t channels : {3, 12, 48}) {
    const auto x = at::randn({2, channels, 5, 7}, at::kDouble).requires_grad_();
    const auto weight = at::randn({channels, channels}, at::kDouble).requires_grad_();
    const auto bias = at::randn({channels}, at::kDouble).requires_grad_();
    const auto z = invertible_conv1x1(x, weight, bias), wanted_z = expected(x, weight, bias);
    expect(at::allclose(z, wanted_z), "z is W x + b");
    const auto ours = torch::autograd::grad({(z * z).sum()}, {x, weight, bias});
    const auto wanted = torch::autograd::grad({(wanted_z * wanted_z).sum()}, {x, weight, bias});
    for (size_t i = 0; i < ours.size(); ++i) expect(at::allclose(ours[i], wanted[i]), "gradients");
  }
}

void test_lu_weights() {
  const auto square = [](int64_t n) { return at::randn({n, n}, at::kDouble); };
  std::vector<at::Tensor> lower, upper, log_s, sign, permutation;
  for (const int64_t channels : {3, 8}) {
    lower.push_back(square(channels));
    upper.push_back(square(channels));
    log_s.push_back(0.1 * at::randn({channels}, at::kDouble));
    sign.push_back(at::randn({channels}, at::kDouble).sign());
    permutation.push_back(at::randperm(channels, at::kLong));
  }
  const auto [weights, biases, logdet] =
      invertible_conv1x1_lu(lower, upper, log_s, sign, permutation, {}, {}, false);
  const auto [inverses, none, logdet_inverse] =
      invertible_conv1x1_lu(lower, upper, log_s, sign, permutation, {}, {}, true);
  expect(biases.empty() && none.empty(), "no bias without actnorm");
  for (size_t i = 0; i < weights.size(); ++i) {
    const auto eye = at::eye(weights[i].size(0), at::kDouble);
    const auto l = lower[i].tril(-1) + eye, u = upper[i].triu(1) + at::diag(sign[i] * log_s[i].exp());
    expect(at::allclose(weights[i], l.matmul(u).index_select(0, permutation[i])), "W is P L U");
    expect(at::allclose(weights[i].matmul(inverses[i]), eye), "the inverse direction gives the inverse of W");
    expect(at::allclose(logdet[i], log_s[i].sum()), "the log-det is the sum of log_s");
    expect(at::allclose(logdet_inverse[i], -log_s[i].sum()), "the inverse negates the log-det");
  }
}

void test_full_weights_with_actnorm() {
  const auto weight = at::randn({5, 5}, at::kDouble), bias = at::randn({5}, at::kDouble);
  const auto log_scale = at::randn({5}, at::kDouble), x = at::randn({2, 5, 3, 3}, at::kDouble);
  const auto [weights, biases, logdet] = invertible_conv1x1_full({weight}, {bias}, {log_scale}, false);
  const auto normalised = (x + bias.view({-1, 1, 1})) * log_scale.view({-1, 1, 1}).exp();
  const auto z = invertible_conv1x1(x, weights[0], biases[0]);
  expect(at::allclose(z, expected(normalised, weight, {})), "actnorm is folded into weight and bias");
  const auto wanted = std::get<1>(at::slogdet(weight)) + log_scale.sum();
  expect(at::allclose(logdet[0], wanted), "the log-det is that of W and of actnorm");
}

void test_errors() {
  expect_value_error("invertible_conv1x1: weight must",
                     "a wrong number of channels is a ValueError that names op and argument",
                     [&] { invertible_conv1x1(at::zeros({2, 4}), at::zeros({3, 3}), {}); });
}

}  // namespace
}  // namespace flowops

int main() {
  at::manual_seed(0);
  flowops::test_product_and_gradients();
  flowops::test_lu_weights();
  flowops::test_full_weights_with_actnorm();
  flowops::test_errors();
  return flowops::testing::exit_status();
}
