// math/mlp.h: the activation and its gradient, vectors against single values.
#include <cmath>
#include <limits>

#include "common/vec.h"
#include "math/mlp.h"
#include "tests/expect.h"

namespace flowops {
namespace {

using testing::expect;

void test_values() {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  expect(relu(2.0) == 2 && relu(-2.0) == 0 && relu(0.0) == 0, "values");
  expect(std::isnan(relu(nan)), "a NaN stays one");
  expect(relu_gradient(3.0, 2.0) == 3 && relu_gradient(3.0, -2.0) == 0, "gradient");
  expect(relu_gradient(3.0, 0.0) == 0, "no gradient at 0");
  expect(relu_gradient(3.0, nan) == 3, "a NaN lets the gradient pass, as in torch");
}

void test_lanes() {
  constexpr int kLanes = Vec<float>::kLanes;
  float x[kLanes], g[kLanes], values[kLanes], gradients[kLanes];
  for (int i = 0; i < kLanes; ++i) x[i] = float(i - kLanes / 2), g[i] = float(i + 1);
  x[0] = std::numeric_limits<float>::quiet_NaN();
  relu(Vec<float>::load(x)).store(values);
  relu_gradient(Vec<float>::load(g), Vec<float>::load(x)).store(gradients);
  expect(std::isnan(values[0]) && gradients[0] == g[0], "a NaN among the lanes");
  for (int i = 1; i < kLanes; ++i) {
    expect(values[i] == relu(x[i]) && gradients[i] == relu_gradient(g[i], x[i]), "lanes are single values");
  }
}

}  // namespace
}  // namespace flowops

int main() {
  flowops::test_values();
  flowops::test_lanes();
  return flowops::testing::exit_status();
}
