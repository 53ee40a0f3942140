// math/linear_attention.h: values and accuracy of the feature maps, their derivatives by differences, NaN.
#include <initializer_list>
#include <limits>

#include "math/linear_attention.h"
#include "tests/expect.h"

namespace flowops {
namespace {

using testing::expect;
using testing::expect_close;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

template <typename Body>
void for_each_map(const Body& body) {
  for (int64_t map = 0; map < kFeatureMaps; ++map) with_feature_map(static_cast<FeatureMap>(map), body);
}

void test_values() {
  expect_close(feature<FeatureMap::kElu>(2.5), 3.5, 0, "elu + 1 above 0");
  expect_close(feature<FeatureMap::kElu>(0.0), 1, 0, "elu + 1 at 0");
  expect_close(feature<FeatureMap::kElu>(-1.0), std::exp(-1.0), 0, "elu + 1 below 0");
  expect_close(feature<FeatureMap::kRelu>(-1.0), 0, 0, "relu below 0");
  expect_close(feature<FeatureMap::kRelu>(1.5), 1.5, 0, "relu above 0");
  expect_close(feature<FeatureMap::kExp>(1.5), std::exp(1.5), 0, "exp");
  expect_close(feature<FeatureMap::kIdentity>(-1.5), -1.5, 0, "identity");
}

void test_no_cancellation() {
  for (const float x : {-5.f, -15.f, -30.f, -80.f}) {
    const double ratio = feature<FeatureMap::kElu>(x) / std::exp(static_cast<double>(x));
    expect_close(ratio, 1, 1e-6, "elu + 1 has all its digits far below 0");
  }
}

void test_gradients() {
  for_each_map([](auto map) {
    constexpr FeatureMap kMap = decltype(map)::kValue;
    for (const double x : {-20.0, -1.3, -1e-3, 1e-3, 0.7, 4.0}) {
      const double h = 1e-6, rise = feature<kMap>(x + h) - feature<kMap>(x - h);
      expect_close(feature_gradient<kMap>(x), rise / (2 * h), 1e-7, "derivative");
    }
  });
}

void test_nan_and_large() {
  for_each_map([](auto map) {
    constexpr FeatureMap kMap = decltype(map)::kValue;
    expect(std::isnan(feature<kMap>(kNan)), "a NaN stays one");
  });
  expect_close(feature<FeatureMap::kElu>(1e4f), 10001, 0,
               "the exponential of the branch not taken is bounded");
  expect_close(feature_gradient<FeatureMap::kElu>(1e4f), 1, 0, "so is that of the derivative");
}

}  // namespace
}  // namespace flowops

int main() {
  flowops::test_values();
  flowops::test_no_cancellation();
  flowops::test_gradients();
  flowops::test_nan_and_large();
  return flowops::testing::exit_status();
}
