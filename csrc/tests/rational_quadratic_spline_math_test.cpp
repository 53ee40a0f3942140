// math/rational_quadratic_spline.h in double: continuity, inverse, log-derivative and gradients, by
// differences.
#include <vector>

#include "math/rational_quadratic_spline.h"
#include "tests/expect.h"

namespace flowops {
namespace {

using testing::expect_close;

struct Shares {
  std::vector<double> values;
  void start(int, double) {}
  void set(int i, double value) { values[i] = value; }
  double get(int i) const { return values[i]; }
};

constexpr int kBins = 5;
const SplineDomain<double> kDomain{-2, 3, -1, 2.5}, kSquare{-2, 2, -2, 2};

struct Spline {
  SplineForm<double> form;
  SplineDomain<double> domain;
  std::vector<double> raw;
  Shares shares{std::vector<double>(2 * kBins)};

  Spline(SplineTails tails, bool exp_slope, double clip)
      : form{kBins, tails, exp_slope,
             1e-2,  2e-2,  1e-3,
             1.3,   clip,  exp_slope ? 0 : std::log(std::expm1(1.3 * 0.999)) / 1.3},
        domain(tails == SplineTails::kNone ? kDomain : kSquare),
        raw(3 * kBins - 1 + static_cast<int>(tails)) {
    for (size_t i = 0; i < raw.size(); ++i) raw[i] = 1.5 * std::sin(1.7 * double(i) + 0.4);
  }

  SplineResult<double> run(double x, bool inverse) {
    const auto logit = [&](int i) { return raw[i]; };
    return inverse ? spline_inverse(x, domain, logit, shares, form, kBins)
                   : spline_transform(x, domain, logit, shares, form, kBins);
  }

  double loss(double x, bool inverse) {
    const auto result = run(x, inverse);
    return 0.7 * result.value - 0.4 * result.logdet;
  }
};

void test_values(Spline spline) {
  for (double x = -5; x < 5; x += 0.0937) {
    const auto forward = spline.run(x, false), back = spline.run(forward.value, true);
    expect_close(back.value, x, 1e-12, "inverse");
    expect_close(back.logdet, -forward.logdet, 1e-10, "log-det of the inverse");
    const double h = 1e-6,
                 slope = (spline.run(x + h, false).value - spline.run(x - h, false).value) / (2 * h);
    expect_close(std::exp(forward.logdet), slope, 1e-7, "log-det is the log of the derivative");
  }
}

void test_gradient(Spline spline, bool inverse) {
  for (double input = -4.9; input < 5; input += 0.4137) {
    std::vector<double> gradient(spline.raw.size(), NAN);
    const auto write = [&](int i, double value) { gradient[i] = value; };
    const auto logit = [&](int i) { return spline.raw[i]; };
    const double h = 1e-6;
    const double by_input = spline_gradient(0.7, -0.4, input, spline.domain, logit, spline.shares,
                                            spline.form, kBins, inverse, write);
    expect_close(by_input, (spline.loss(input + h, inverse) - spline.loss(input - h, inverse)) / (2 * h),
                 1e-6, "gradient of the input");
    for (size_t i = 0; i < gradient.size(); ++i) {
      Spline more = spline, less = spline;
      more.raw[i] += h, less.raw[i] -= h;
      expect_close(gradient[i], (more.loss(input, inverse) - less.loss(input, inverse)) / (2 * h), 1e-6,
                   "gradient of a parameter");
    }
  }
}

void test_extremes() {
  for (const double size : {50.0, -700.0, 1e6}) {
    Spline spline(SplineTails::kLinear, false, 0);
    for (size_t i = 0; i < spline.raw.size(); ++i) spline.raw[i] = i % 3 == 0 ? size : -size;
    for (const double x : {-2.0, -1.999, 0.0, 1.0, 2.0}) {
      const auto forward = spline.run(x, false);
      expect_close(forward.value - forward.value + forward.logdet - forward.logdet, 0, 0, "finite results");
      double total = 0;
      const auto write = [&](int, double value) { total += value - value; };
      const auto logit = [&](int i) { return spline.raw[i]; };
      total +=
          spline_gradient(1.0, 1.0, x, spline.domain, logit, spline.shares, spline.form, kBins, false, write);
      expect_close(total - total, 0, 0, "finite gradients");
    }
  }
}

}  // namespace
}  // namespace flowops

int main() {
  using flowops::SplineTails;
  for (const auto tails : {SplineTails::kLinear, SplineTails::kCircular, SplineTails::kNone}) {
    for (const bool exp_slope : {false, true}) {
      const flowops::Spline spline(tails, exp_slope, exp_slope ? 0.14 : 0);
      flowops::test_values(spline);
      for (const bool inverse : {false, true}) flowops::test_gradient(spline, inverse);
    }
  }
  flowops::test_extremes();
  return flowops::testing::exit_status();
}
