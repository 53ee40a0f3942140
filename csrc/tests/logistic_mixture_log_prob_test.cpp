// The op through libflowops: values, gradients and errors against what ATen computes.
#include "ops/logistic_mixture_log_prob.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>

#include "tests/expect_error.h"

namespace flowops {
namespace {

using testing::expect;
using testing::expect_value_error;

// One component of one colour: the difference of two sigmoids.
void test_values_and_gradients() {
  const auto x = at::randint(1, 255, {5, 1, 7}, at::kDouble);
  const auto params = (at::randn({5, 3, 7}, at::kDouble) / 2).requires_grad_();
  const auto ours = logistic_mixture_log_prob(x, params, 256, -7);
  const auto mean = params.narrow(1, 1, 1), inverse = (-params.narrow(1, 2, 1)).exp();
  const auto end = [&](double side) { return ((2 * x + side) / 255 - 1 - mean) * inverse; };
  const auto wanted = (at::sigmoid(end(1)) - at::sigmoid(end(-1))).log().flatten(1).sum(1);
  expect(at::allclose(ours, wanted), "the sum of log-probabilities of each sample");
  const auto gradient = [&](const at::Tensor& total) {
    return torch::autograd::grad({(total * total).sum()}, {params})[0];
  };
  expect(at::allclose(gradient(ours), gradient(wanted), 1e-5, 1e-6), "gradients");
}

void test_bytes() {
  const auto x = at::randint(0, 256, {2, 3, 4, 5}, at::kByte);
  const auto params = at::randn({2, 20, 4, 5});
  expect(at::equal(logistic_mixture_log_prob(x, params, 256, -7),
                   logistic_mixture_log_prob(x.to(at::kFloat), params, 256, -7)),
         "bytes are what they stand for");
}

void test_errors() {
  expect_value_error("logistic_mixture_log_prob: params must",
                     "a wrong shape is a ValueError that names op and argument",
                     [&] { logistic_mixture_log_prob(at::zeros({2, 3}), at::zeros({2, 9}), 256, -7); });
}

}  // namespace
}  // namespace flowops

int main() {
  at::manual_seed(0);
  flowops::test_values_and_gradients();
  flowops::test_bytes();
  flowops::test_errors();
  return flowops::testing::exit_status();
}
