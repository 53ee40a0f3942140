// The op through libflowops: values, gradients and errors against what ATen computes.
#include "ops/gaussian_log_prob.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>

#include "tests/expect_error.h"

namespace flowops {
namespace {

using testing::expect;
using testing::expect_value_error;

void test_values_and_gradients() {
  const auto x = at::randn({5, 3, 7}, at::kDouble).requires_grad_();
  const auto params = at::randn({5, 6, 7}, at::kDouble).requires_grad_();
  const auto mean = params.narrow(1, 0, 3), log_scale = params.narrow(1, 3, 3);
  const auto terms = ((x - mean) * (-log_scale).exp()).square() + std::log(2 * std::acos(-1.0));
  const auto wanted = -(0.5 * terms + log_scale).flatten(1).sum(1);
  const auto gradients = [&](const at::Tensor& density) {
    return torch::autograd::grad({(density * density).sum()}, {x, params});
  };
  const auto want = gradients(wanted);
  for (const auto& ours : {gaussian_log_prob(x, mean, log_scale, {}), gaussian_log_prob(x, {}, {}, params)}) {
    expect(at::allclose(ours, wanted), "the sum of log-densities of each sample");
    const auto got = gradients(ours);
    for (size_t i = 0; i < got.size(); ++i) expect(at::allclose(got[i], want[i]), "gradients");
  }
}

void test_standard() {
  const auto z = at::zeros({2, 4});
  const auto density = gaussian_log_prob(z, {}, {}, {});
  expect(at::allclose(density, at::full({2}, -2 * std::log(2 * std::acos(-1.0)))), "the mode of N(0, I)");
}

void test_errors() {
  expect_value_error("gaussian_log_prob: mean must",
                     "a wrong shape is a ValueError that names op and argument",
                     [&] { gaussian_log_prob(at::zeros({2, 4}), at::zeros({2, 3}), {}, {}); });
}

}  // namespace
}  // namespace flowops

int main() {
  at::manual_seed(0);
  flowops::test_values_and_gradients();
  flowops::test_standard();
  flowops::test_errors();
  return flowops::testing::exit_status();
}
