// The op through libflowops: identity, inverse, log-det, gradients and errors.
#include "ops/rational_quadratic_spline.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include "tests/expect_error.h"

namespace flowops {
namespace {

using testing::expect;
using testing::expect_value_error;

const std::vector<double> kForm = {-3, 3, -3, 3, 1e-3, 1e-3, 1e-3, std::log(2.0) / 0.999, 0};

std::tuple<at::Tensor, at::Tensor> spline(const at::Tensor& x, const at::Tensor& params, bool inverse) {
  return rational_quadratic_spline(x, params, {}, {}, kForm, 0, false, false, inverse);
}

void test_identity_and_inverse() {
  const auto x = 2 * at::randn({30, 5});
  const auto [same, nothing] = spline(x, at::zeros({30, 5, 23}), false);
  expect(at::allclose(same, x, 1e-5, 1e-5), "raw zeros are the identity");
  expect(at::allclose(nothing, at::zeros({30}), 0, 1e-4), "with a log-det of zero");
  const auto params = at::randn({30, 5, 23}, at::kDouble);
  const auto [z, logdet] = spline(x.to(at::kDouble), params, false);
  const auto [back, reverse] = spline(z, params, true);
  expect(at::allclose(back, x.to(at::kDouble), 1e-9, 1e-9), "the inverse gives x back");
  expect(at::allclose(logdet, -reverse, 1e-7, 1e-7), "the log-dets cancel");
}

void test_derivative() {
  const auto x = (2 * at::randn({30, 1}, at::kDouble)).requires_grad_();
  const auto params = at::randn({30, 1, 23}, at::kDouble);
  const auto [z, logdet] = spline(x, params, false);
  const auto slope = torch::autograd::grad({z}, {x}, {at::ones_like(z)})[0];
  expect(at::allclose(slope.squeeze(1).log(), logdet), "the log-det is the log of the derivative");
}

void test_errors() {
  expect_value_error("rational_quadratic_spline: params must",
                     "a wrong number of parameters is a ValueError that names op and argument",
                     [&] { spline(at::zeros({2, 4}), at::zeros({2, 4, 24}), false); });
}

}  // namespace
}  // namespace flowops

int main() {
  at::manual_seed(0);
  flowops::test_identity_and_inverse();
  flowops::test_derivative();
  flowops::test_errors();
  return flowops::testing::exit_status();
}
