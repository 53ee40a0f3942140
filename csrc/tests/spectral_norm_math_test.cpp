// math/spectral_norm.h in double: the factor and its derivative in sigma, and the full gradient, by
// differences.
#include <initializer_list>
#include <limits>

#include "math/spectral_norm.h"
#include "tests/expect.h"

namespace flowops {
namespace {

using testing::expect;
using testing::expect_close;

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

void test_factor_and_slope() {
  for (const double coefficient : {0.0, 0.7, 3.0}) {
    for (const double sigma : {0.3, 1.5, 8.0}) {
      const double h = 1e-6, bound = std::fmax(1, sigma / coefficient);
      const auto scale = spectral_scale(sigma, coefficient);
      expect_close(scale.factor, coefficient > 0 ? 1 / bound : 1 / sigma, 1e-15, "factor");
      const double above = spectral_scale(sigma + h, coefficient).factor;
      const double below = spectral_scale(sigma - h, coefficient).factor;
      expect_close(scale.slope, (above - below) / (2 * h), 1e-8, "derivative of the factor");
    }
  }
  expect(std::isnan(spectral_scale(kNan, 0.7).factor), "a bound does not hide a NaN");
  expect_close(spectral_scale(0.0, 0.7).factor, 1, 0, "a zero matrix stays within its bound");
}

// One entry w of a matrix whose sigma is w u v with u = v = 1: f(sigma) w, loss g f(w) w + h w.
void test_gradient() {
  const double g = 1.3, upstream_sigma = -0.4, step = 1e-6;
  for (const double coefficient : {0.0, 0.7, 3.0}) {
    const double w = 1.5;
    const auto loss = [&](double x) {
      return g * spectral_scale(x, coefficient).factor * x + upstream_sigma * x;
    };
    const auto scale = spectral_scale(w, coefficient);
    const double gradient =
        scale.factor * g + spectral_direction_gradient(g * w, upstream_sigma, scale.slope);
    expect_close(gradient, (loss(w + step) - loss(w - step)) / (2 * step), 1e-8, "gradient of the weight");
  }
}

void test_directions() {
  expect(gives_direction(1e-6, 1e-12), "a short product has a direction");
  expect(!gives_direction(0.0, 1e-12) && !gives_direction(1e-13, 1e-12), "one within eps has none");
  expect(!gives_direction(kInfinity, 1e-12) && !gives_direction(kNan, 1e-12), "nor has one not finite");
}

}  // namespace
}  // namespace flowops

int main() {
  flowops::test_factor_and_slope();
  flowops::test_gradient();
  flowops::test_directions();
  return flowops::testing::exit_status();
}
