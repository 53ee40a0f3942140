// math/gaussian_log_prob.h: the density of known Gaussians, gradients against differences, extreme
// deviations, vectors against single values.
#include <cstdint>
#include <initializer_list>
#include <limits>

#include "common/vec.h"
#include "math/gaussian_log_prob.h"
#include "tests/expect.h"

namespace flowops {
namespace {

using testing::expect;
using testing::expect_close;

template <typename V>
V log_prob(V x, V mean, V log_scale) {
  const V distance = gaussian_reduced(x - mean, gaussian_root(log_scale));
  return -(gaussian_excess(distance, log_scale) + V(kHalfLog2Pi));
}

void test_values() {
  expect_close(log_prob(0.0, 0.0, 0.0), -0.5 * std::log(2 * std::acos(-1.0)), 1e-15, "the mode of N(0, 1)");
  // exp(log p) sums to 1 over a fine grid.
  double total = 0;
  for (int i = -4000; i <= 4000; ++i) total += std::exp(log_prob(0.3 + i * 0.01, 0.3, 0.7)) * 0.01;
  expect_close(total, 1, 1e-12, "a density");
}

void test_gradient() {
  constexpr double kUpstream = -1.3, kStep = 1e-6;
  const double x = 0.4, mean = -0.2, log_scale = 0.6, root = gaussian_root(log_scale);
  const auto grad = gaussian_log_prob_gradient(kUpstream, gaussian_reduced(x - mean, root), root);
  const auto slope = [&](double dx, double dmean, double dscale) {
    const auto at = [&](double t) { return log_prob(x + t * dx, mean + t * dmean, log_scale + t * dscale); };
    return kUpstream * (at(kStep) - at(-kStep)) / (2 * kStep);
  };
  expect_close(grad.x, slope(1, 0, 0), 1e-8, "gradient of x");
  expect_close(-grad.x, slope(0, 1, 0), 1e-8, "gradient of the mean");
  expect_close(grad.log_scale, slope(0, 0, 1), 1e-8, "gradient of the log deviation");
}

template <typename T>
void test_extremes() {
  const T huge = std::numeric_limits<T>::max() / 4, nan = std::numeric_limits<T>::quiet_NaN();
  for (const T log_scale : {-huge, T(-1000), T(1000), huge}) {
    const T root = gaussian_root(log_scale);
    expect_close(log_prob(T(2), T(2), log_scale), -log_scale, 1e-2, "at the mean");
    const auto grad = gaussian_log_prob_gradient(T(3), gaussian_reduced(T(0), root), root);
    expect(grad.x == 0 && grad.log_scale == -3, "gradients at the mean");
  }
  expect(std::isnan(log_prob(nan, T(0), T(0))), "NaN in x");
  expect(std::isnan(log_prob(T(0), T(0), nan)), "NaN in log_scale");
}

template <typename T>
void test_vectors(double tolerance) {
  constexpr int kLanes = Vec<T>::kLanes;
  T x[kLanes], scale[kLanes], density[kLanes], grad_x[kLanes], grad_scale[kLanes];
  for (int i = 0; i < kLanes; ++i) x[i] = T(0.3) * T(i - 2), scale[i] = T(i - kLanes / 2);
  const auto v = Vec<T>::load(x), s = Vec<T>::load(scale), root = gaussian_root(s);
  const Vec<T> mean(T(0.3)), distance = gaussian_reduced(v - mean, root);
  log_prob(v, mean, s).store(density);
  const auto grad = gaussian_log_prob_gradient(Vec<T>(T(0.5)), distance, root);
  grad.x.store(grad_x), grad.log_scale.store(grad_scale);
  for (int i = 0; i < kLanes; ++i) {
    const T one_root = gaussian_root(scale[i]);
    const auto one = gaussian_log_prob_gradient(T(0.5), gaussian_reduced(x[i] - T(0.3), one_root), one_root);
    expect_close(double(density[i]), double(log_prob(x[i], T(0.3), scale[i])), tolerance,
                 "density of a lane");
    expect_close(double(grad_x[i]), double(one.x), tolerance, "gradient of a lane");
    expect_close(double(grad_scale[i]), double(one.log_scale), tolerance, "gradient of a lane");
  }
}

}  // namespace
}  // namespace flowops

int main() {
  flowops::test_values();
  flowops::test_gradient();
  flowops::test_extremes<float>();
  flowops::test_extremes<double>();
  flowops::test_vectors<float>(1e-5);
  flowops::test_vectors<double>(1e-13);
  return flowops::testing::exit_status();
}
