// mlp through libflowops, against ATen's linear layers.
#include "ops/mlp.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include "tests/expect_error.h"

namespace flowops {
namespace {

using testing::expect;
using testing::expect_value_error;

void test_values_and_gradients() {
  const auto x = at::randn({130, 3}, at::kDouble).requires_grad_();
  const TensorVector weight{at::randn({5, 3}, at::kDouble).requires_grad_(), at::randn({5, 5}, at::kDouble),
                            at::randn({5, 5}, at::kDouble), at::randn({2, 5}, at::kDouble)};
  const TensorVector bias{at::randn({5}, at::kDouble), at::randn({5}, at::kDouble),
                          at::randn({5}, at::kDouble), at::randn({2}, at::kDouble).requires_grad_()};
  const auto first = at::linear(x, weight[0], bias[0]);
  const auto inner = at::linear(first.relu(), weight[1], bias[1]);
  const auto wanted =
      at::linear((first + at::linear(inner.relu(), weight[2], bias[2])).relu(), weight[3], bias[3]);
  const auto [ours, hidden] = mlp(x, weight, bias, /*residual=*/true, /*keep_hidden=*/false);
  expect(at::allclose(ours, wanted), "the result");
  expect(hidden.size(1) == 15, "the hidden layers are kept for the gradients");
  const torch::autograd::variable_list leaves{x, weight[0], bias[3]};
  const auto grads = torch::autograd::grad({(ours * ours).sum()}, leaves);
  const auto expected = torch::autograd::grad({(wanted * wanted).sum()}, leaves);
  for (size_t i = 0; i < leaves.size(); ++i) expect(at::allclose(grads[i], expected[i]), "gradients");
}

void test_errors() {
  expect_value_error("mlp: weight[0] must", "a wrong shape is a ValueError that names op and argument",
                     [&] { mlp(at::zeros({2, 3}), {at::zeros({4, 2})}, {at::zeros({4})}, false, false); });
}

}  // namespace
}  // namespace flowops

int main() {
  at::manual_seed(0);
  flowops::test_values_and_gradients();
  flowops::test_errors();
  return flowops::testing::exit_status();
}
