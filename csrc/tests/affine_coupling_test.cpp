// The op through libflowops: values, inverse, gradients and errors against what ATen computes.
#include "ops/affine_coupling.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include "tests/expect_error.h"

namespace flowops {
namespace {

using testing::expect;
using testing::expect_value_error;

constexpr int64_t kExp = 1, kScaleThenShift = 0, kScaleShift = 0;

std::tuple<at::Tensor, at::Tensor> couple(const at::Tensor& x, const at::Tensor& params, bool inverse) {
  return affine_coupling(x, params, {}, {}, {}, x.size(1) / 2, kExp, kScaleThenShift, kScaleShift, inverse);
}

std::tuple<at::Tensor, at::Tensor> expected(const at::Tensor& x, const at::Tensor& params) {
  const auto halves = x.chunk(2, 1), parts = params.chunk(2, 1);
  return {at::cat({halves[0], halves[1] * parts[0].exp() + parts[1]}, 1), parts[0].sum({1, 2, 3})};
}

void test_values_and_inverse(at::ScalarType dtype, double tolerance) {
  const auto x = at::randn({3, 6, 5, 7}, dtype), params = at::randn({3, 6, 5, 7}, dtype);
  const auto [z, logdet] = couple(x, params, false);
  const auto [wanted_z, wanted_logdet] = expected(x, params);
  expect(at::allclose(z, wanted_z, tolerance, tolerance), "z is x e^s + t");
  expect(at::allclose(logdet, wanted_logdet, tolerance, 10 * tolerance), "the log-det is the sum of s");
  const auto [back, logdet_back] = couple(z, params, true);
  expect(at::allclose(back, x, 10 * tolerance, 10 * tolerance), "the inverse gives x back");
  expect(at::allclose(logdet_back, -logdet, tolerance, 10 * tolerance), "the log-dets cancel");
}

void test_gradients() {
  const auto x = at::randn({2, 4, 3, 3}, at::kDouble).requires_grad_();
  const auto params = at::randn({2, 4, 3, 3}, at::kDouble).requires_grad_();
  const auto gradients = [&](const std::tuple<at::Tensor, at::Tensor>& outputs) {
    const auto& [z, logdet] = outputs;
    const auto loss = (z * z).sum() + (logdet * logdet).sum();
    return torch::autograd::grad({loss}, {x, params});
  };
  const auto ours = gradients(couple(x, params, false)), wanted = gradients(expected(x, params));
  expect(at::allclose(ours[0], wanted[0]), "gradient of x");
  expect(at::allclose(ours[1], wanted[1]), "gradient of params");
}

void test_errors() {
  expect_value_error("affine_coupling: params must",
                     "a wrong batch size is a ValueError that names op and argument",
                     [&] { couple(at::zeros({2, 4}), at::zeros({3, 4}), false); });
}

}  // namespace
}  // namespace flowops

int main() {
  at::manual_seed(0);
  flowops::test_values_and_inverse(at::kFloat, 1e-5);
  flowops::test_values_and_inverse(at::kDouble, 1e-12);
  flowops::test_gradients();
  flowops::test_errors();
  return flowops::testing::exit_status();
}
