// The op through libflowops: values, log-determinant, gradients, noise and errors against what ATen computes.
#include "ops/dequantize_logit.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>

#include "tests/expect_error.h"

namespace flowops {
namespace {

using testing::expect;
using testing::expect_value_error;

constexpr double kAlpha = 0.05;
constexpr int64_t kLevels = 17;

std::tuple<at::Tensor, at::Tensor> expected(const at::Tensor& t) {
  const auto z = (kAlpha + (1 - 2 * kAlpha) * t / double(kLevels)).logit();
  const auto terms = std::log((1 - 2 * kAlpha) / kLevels) - at::log_sigmoid(z) - at::log_sigmoid(-z);
  return {z, terms.flatten(1).sum(1)};
}

void test_values_and_gradients() {
  const auto values = at::randint(kLevels, {5, 3, 7}, at::kDouble).requires_grad_();
  const auto key = random_key(values);
  const auto ours = dequantize_logit(values, key, {}, kLevels, kAlpha, false);
  const auto wanted = expected(values + uniform_noise(key, values.sizes(), at::kDouble));
  expect(at::allclose(std::get<0>(ours), std::get<0>(wanted)), "z is the logit of v + u");
  expect(at::allclose(std::get<1>(ours), std::get<1>(wanted)), "the log-determinant of each sample");
  const auto gradient = [&](const std::tuple<at::Tensor, at::Tensor>& outputs) {
    const auto& [z, logdet] = outputs;
    return torch::autograd::grad({(z * z).sum() + (logdet * logdet).sum()}, {values})[0];
  };
  expect(at::allclose(gradient(ours), gradient(wanted)), "gradient");
}

void test_bytes_and_inverse() {
  const auto values = at::randint(kLevels, {5, 30}, at::kByte);
  const auto before = at::randn({5});
  const auto [z, logdet] = dequantize_logit(values, random_key(values), before, kLevels, kAlpha, false);
  expect(z.scalar_type() == at::kFloat, "z of bytes is float");
  const auto [back, total] = dequantize_logit(z, {}, logdet, kLevels, kAlpha, true);
  expect(at::equal(back.floor().to(at::kByte), values), "the inverse gives the values back");
  expect(at::allclose(total, before, 1e-4, 1e-3), "the log-determinants are opposite");
}

void test_errors() {
  expect_value_error("dequantize_logit: levels must",
                     "wrong levels are a ValueError that names op and argument",
                     [&] { dequantize_logit(at::zeros({2, 4}), {}, {}, 0, kAlpha, false); });
}

}  // namespace
}  // namespace flowops

int main() {
  at::manual_seed(0);
  flowops::test_values_and_gradients();
  flowops::test_bytes_and_inverse();
  flowops::test_errors();
  return flowops::testing::exit_status();
}
