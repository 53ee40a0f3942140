// math/actnorm.h in double: the inverse, the parameters' gradient and merged moments, each computed directly.
#include <initializer_list>

#include "math/actnorm.h"
#include "tests/expect.h"

namespace flowops {
namespace {

using testing::expect_close;

constexpr int kCount = 5;
constexpr double kInputs[kCount] = {0.3, -1.2, 2.5, 0.1, -0.7};
constexpr double kUpstream[kCount] = {1.1, -0.4, 0.2, 0.9, -1.3};
constexpr double kUpstreamLogdet = 0.6;

// One sample of one channel with kCount pixels.
double loss(double bias, double log_scale, bool inverse) {
  double total = kUpstreamLogdet * kCount * (inverse ? -log_scale : log_scale);
  for (int i = 0; i < kCount; ++i) {
    total += kUpstream[i] * actnorm_transform(kInputs[i], bias, actnorm_factor(log_scale, inverse), inverse);
  }
  return total;
}

void test_inverse() {
  const double bias = 0.4, log_scale = -0.8, x = 1.7;
  const double z = actnorm_transform(x, bias, actnorm_factor(log_scale, false), false);
  expect_close(z, (x + bias) * std::exp(log_scale), 1e-15, "z = (x + b) exp(s)");
  expect_close(actnorm_transform(z, bias, actnorm_factor(log_scale, true), true), x, 1e-15, "inverse");
}

void test_parameter_gradient(bool inverse) {
  const double bias = 0.4, log_scale = -0.8, h = 1e-6;
  double sum = 0, moment = 0;
  for (int i = 0; i < kCount; ++i) {
    sum += kUpstream[i];
    moment += kUpstream[i] * (kInputs[i] + actnorm_gradient_shift(bias, inverse));
  }
  const auto gradient = actnorm_parameter_gradient(sum, moment, kCount * kUpstreamLogdet,
                                                   actnorm_factor(log_scale, inverse), inverse);
  const double by_bias = (loss(bias + h, log_scale, inverse) - loss(bias - h, log_scale, inverse)) / (2 * h);
  const double by_scale = (loss(bias, log_scale + h, inverse) - loss(bias, log_scale - h, inverse)) / (2 * h);
  expect_close(gradient.bias, by_bias, 1e-8, "gradient of bias");
  expect_close(gradient.log_scale, by_scale, 1e-8, "gradient of log_scale");
}

void test_merged_moments() {
  const auto moments = [](int first, int last) {
    Moments<double> result{0, 0, 0};
    for (int i = first; i < last; ++i) result = merge_moments(result, Moments<double>{1, kInputs[i], 0});
    return result;
  };
  double mean = 0, squares = 0;
  for (const double x : kInputs) mean += x / kCount;
  for (const double x : kInputs) squares += (x - mean) * (x - mean);
  const auto merged = merge_moments(moments(0, 2), moments(2, kCount));
  expect_close(merged.count, kCount, 0, "count");
  expect_close(merged.mean, mean, 1e-15, "mean");
  expect_close(merged.squares, squares, 1e-14, "sum of squared deviations");
  const auto with_empty = merge_moments(merged, Moments<double>{0, 0, 0});
  expect_close(with_empty.squares, squares, 1e-14, "an empty set changes nothing");
}

}  // namespace
}  // namespace flowops

int main() {
  flowops::test_inverse();
  for (const bool inverse : {false, true}) flowops::test_parameter_gradient(inverse);
  flowops::test_merged_moments();
  return flowops::testing::exit_status();
}
