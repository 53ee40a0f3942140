// The op through libflowops: values, inverse, gradients, statistics and errors against what ATen computes.
#include "ops/actnorm.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include "tests/expect_error.h"

namespace flowops {
namespace {

using testing::expect;
using testing::expect_value_error;

std::tuple<at::Tensor, at::Tensor> expected(const at::Tensor& x, const at::Tensor& bias,
                                            const at::Tensor& log_scale) {
  const auto z = (x + bias.view({-1, 1, 1})) * log_scale.view({-1, 1, 1}).exp();
  return {z, (x.size(2) * x.size(3) * log_scale.sum()).expand({x.size(0)})};
}

void test_values_and_inverse() {
  const auto x = at::randn({3, 4, 5, 7}), bias = at::randn({4}), log_scale = at::randn({4});
  const auto [z, logdet] = actnorm(x, bias, log_scale, {}, false);
  const auto [wanted_z, wanted_logdet] = expected(x, bias, log_scale);
  expect(at::allclose(z, wanted_z, 1e-5, 1e-5), "z is (x + b) e^s");
  expect(at::allclose(logdet, wanted_logdet, 1e-5, 1e-4), "the log-det is pixels times the sum of s");
  const auto [back, both] = actnorm(z, bias, log_scale, logdet, true);
  expect(at::allclose(back, x, 1e-4, 1e-4), "the inverse gives x back");
  expect(at::allclose(both, at::zeros({3}), 0, 1e-4), "its log-det, added to the first, cancels");
}

void test_gradients() {
  const auto x = at::randn({2, 4, 3, 3}, at::kDouble).requires_grad_();
  const auto bias = at::randn({4}, at::kDouble).requires_grad_();
  const auto log_scale = at::randn({4}, at::kDouble).requires_grad_();
  const auto gradients = [&](const std::tuple<at::Tensor, at::Tensor>& outputs) {
    const auto& [z, logdet] = outputs;
    return torch::autograd::grad({(z * z).sum() + (logdet * logdet).sum()}, {x, bias, log_scale});
  };
  const auto ours = gradients(actnorm(x, bias, log_scale, {}, false));
  const auto wanted = gradients(expected(x, bias, log_scale));
  for (size_t i = 0; i < ours.size(); ++i) expect(at::allclose(ours[i], wanted[i]), "gradients");
}

void test_statistics() {
  const auto x = 100 + at::randn({6, 4, 5, 3}, at::kDouble);
  const auto [mean, std] = actnorm_statistics(x);
  const auto channels = x.transpose(0, 1).flatten(1);
  expect(at::allclose(mean, channels.mean(1)), "mean a channel");
  expect(at::allclose(std, channels.std(1, /*unbiased=*/false)), "population standard deviation a channel");
}

void test_errors() {
  expect_value_error("actnorm: bias must",
                     "a wrong number of channels is a ValueError that names op and argument",
                     [&] { actnorm(at::zeros({2, 4}), at::zeros({3}), at::zeros({4}), {}, false); });
}

}  // namespace
}  // namespace flowops

int main() {
  at::manual_seed(0);
  flowops::test_values_and_inverse();
  flowops::test_gradients();
  flowops::test_statistics();
  flowops::test_errors();
  return flowops::testing::exit_status();
}
