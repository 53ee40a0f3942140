// The op through libflowops: values, KL, gradients, the stream and errors against what ATen computes.
#include "ops/gaussian_rsample.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include "tests/expect_error.h"

namespace flowops {
namespace {

using testing::expect;
using testing::expect_value_error;

constexpr int64_t kLogVariance = 0;

std::tuple<at::Tensor, at::Tensor> expected(const at::Tensor& mean, const at::Tensor& logvar,
                                            const at::Tensor& key) {
  const auto noise = gaussian_noise(key, mean.sizes(), mean.scalar_type());
  const auto kl = 0.5 * (mean * mean + logvar.exp() - 1 - logvar).flatten(1).sum(1);
  return {mean + (0.5 * logvar).exp() * noise, kl};
}

void test_values_and_gradients() {
  const auto params = at::randn({5, 6, 7}, at::kDouble).requires_grad_();
  const auto mean = params.narrow(1, 0, 3), logvar = params.narrow(1, 3, 3);
  const auto key = random_key(params);
  const auto wanted = expected(mean, logvar, key);
  const auto gradients = [&](const std::tuple<at::Tensor, at::Tensor>& outputs) {
    const auto& [z, kl] = outputs;
    return torch::autograd::grad({(z * z).sum() + (kl * kl).sum()}, {params})[0];
  };
  const auto want = gradients(wanted);
  for (const auto& ours : {gaussian_rsample(mean, logvar, key, {}, {}, {}, kLogVariance, false, true),
                           gaussian_rsample({}, {}, key, {}, {}, params, kLogVariance, false, true)}) {
    expect(at::allclose(std::get<0>(ours), std::get<0>(wanted)), "z is mean + exp(logvar / 2) noise");
    expect(at::allclose(std::get<1>(ours), std::get<1>(wanted)), "the KL to N(0, I) of each sample");
    expect(at::allclose(gradients(ours), want), "gradients");
  }
}

void test_stream() {
  const auto key = random_key(at::zeros({1}));
  const auto noise = gaussian_noise(key, {1000, 100}, at::kFloat);
  expect(at::equal(noise, gaussian_noise(key, {1000, 100}, at::kFloat)), "a key fixes the noise");
  expect(!at::equal(noise, gaussian_noise(random_key(key), {1000, 100}, at::kFloat)), "keys differ");
  expect(std::abs(noise.mean().item<double>()) < 0.02, "mean 0");
  expect(std::abs(noise.std().item<double>() - 1) < 0.02, "standard deviation 1");
}

void test_errors() {
  expect_value_error("gaussian_rsample: scale must",
                     "a wrong shape is a ValueError that names op and argument", [&] {
                       gaussian_rsample(at::zeros({2, 4}), at::zeros({2, 3}), at::zeros({2}, at::kLong), {},
                                        {}, {}, kLogVariance, false, true);
                     });
}

}  // namespace
}  // namespace flowops

int main() {
  at::manual_seed(0);
  flowops::test_values_and_gradients();
  flowops::test_stream();
  flowops::test_errors();
  return flowops::testing::exit_status();
}
