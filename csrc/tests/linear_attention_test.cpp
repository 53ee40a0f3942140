// linear_attention through libflowops, against the matrix of weights that ATen computes.
#include "ops/linear_attention.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <string>

#include "tests/expect_error.h"

namespace flowops {
namespace {

using testing::expect;
using testing::expect_value_error;

constexpr int64_t kElu = 0;
constexpr double kEps = 1e-6;

std::vector<at::Tensor> make_inputs() {
  const std::vector<std::vector<int64_t>> sizes{{2, 40, 3, 5}, {2, 40, 3, 5}, {2, 40, 3, 7}};
  std::vector<at::Tensor> inputs;
  for (const auto& size : sizes) inputs.push_back(at::randn(size, at::kDouble).requires_grad_());
  return inputs;
}

at::Tensor attend(const std::vector<at::Tensor>& x, bool causal) {
  return std::get<0>(linear_attention(x[0], x[1], x[2], {}, {}, {}, {}, kElu, causal, true, kEps));
}

at::Tensor expected(const std::vector<at::Tensor>& x, bool causal) {
  at::Tensor weights = at::einsum("bihd,bjhd->bhij", {at::elu(x[0]) + 1, at::elu(x[1]) + 1});
  if (causal) weights = weights.tril();
  return at::einsum("bhij,bjhe->bihe", {weights / (weights.sum(3, true) + kEps), x[2]});
}

void test_values_and_gradients() {
  for (const bool causal : {false, true}) {
    const auto inputs = make_inputs();
    const auto ours = attend(inputs, causal), wanted = expected(inputs, causal);
    expect(at::allclose(ours, wanted), "rows are weighted means of v");
    const auto got = torch::autograd::grad({ours.square().sum()}, inputs);
    const auto want = torch::autograd::grad({wanted.square().sum()}, inputs);
    for (size_t i = 0; i < got.size(); ++i) expect(at::allclose(got[i], want[i]), "gradients");
  }
}

void test_steps_are_the_whole() {
  const at::NoGradGuard guard;
  const auto x = make_inputs();
  std::vector<at::Tensor> steps;
  OptionalTensor kv, z;
  for (int64_t t = 0; t < x[0].size(1); ++t) {
    auto step = linear_attention(x[0].narrow(1, t, 1), x[1].narrow(1, t, 1), x[2].narrow(1, t, 1), kv, z, {},
                                 {}, kElu, true, true, kEps);
    steps.push_back(std::get<0>(step));
    kv = std::get<1>(step), z = std::get<2>(step);
  }
  expect(at::allclose(at::cat(steps, 1), attend(x, true)), "step by step gives what the whole gives");
}

void test_errors() {
  const auto x = at::zeros({2, 4, 3, 5});
  expect_value_error("linear_attention: k must",
                     "keys of another length are a ValueError that names op and argument",
                     [&] { attend({x, x.narrow(1, 0, 3), x}, true); });
}

}  // namespace
}  // namespace flowops

int main() {
  at::manual_seed(0);
  flowops::test_values_and_gradients();
  flowops::test_steps_are_the_whole();
  flowops::test_errors();
  return flowops::testing::exit_status();
}
