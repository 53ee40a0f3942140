// math/affine_coupling.h in double: scale maps, the inverse, and the gradient against central differences.
#include <algorithm>
#include <initializer_list>

#include "math/affine_coupling.h"
#include "tests/expect.h"

namespace flowops {
namespace {

using testing::expect_close;

constexpr double kGain = 0.8, kFloor = 1e-3;
constexpr double kRaws[] = {-30, -2.5, -0.3, 0.1, 0.7, 2, 30};

double sigmoid(double u) { return 1 / (1 + std::exp(-u)); }

template <typename Scale>
auto evaluate(double raw, double limit) {
  return Scale::template evaluate<double>({raw, limit, kGain, kFloor});
}

template <typename Scale>
double log_scale(double raw, double limit) {
  const auto terms = evaluate<Scale>(raw, limit);
  return terms.log_sum - std::log(terms.log_product);
}

// One element in either direction: the transformed value, and log |d out / d in| through `logdet`.
template <typename Scale>
double transform(double x, double raw, double limit, double shift, bool shift_then_scale, bool inverse,
                 double* logdet) {
  const auto terms = evaluate<Scale>(raw, limit);
  *logdet = (inverse ? -1 : 1) * (terms.log_sum - std::log(terms.log_product));
  const double factor = inverse ? terms.reciprocal : terms.value;
  return affine_coupling_transform(x, factor, shift, shift_then_scale != inverse, inverse);
}

template <typename Scale>
void test_scale(const char* name, double (*wanted)(double raw, double limit), bool learned) {
  constexpr double kLimit = 1.7;
  for (const double raw : kRaws) {
    const auto terms = evaluate<Scale>(raw, kLimit);
    const double scale = wanted(raw, kLimit);
    expect_close(terms.value / scale, 1, 1e-14, name);
    expect_close(terms.reciprocal * scale, 1, 1e-14, name);
    expect_close(log_scale<Scale>(raw, kLimit), std::log(scale), 1e-14, name);
    constexpr double h = 1e-5;
    const auto slope = [&](double dr, double da) {
      return (log_scale<Scale>(raw + dr, kLimit + da) - log_scale<Scale>(raw - dr, kLimit - da)) / (2 * h);
    };
    expect_close(terms.slope, slope(h, 0), 1e-8, name);
    if (learned) expect_close(terms.limit_slope, slope(0, h), 1e-8, name);
  }
}

template <typename Scale>
void test_inverse_and_gradient(const char* name, bool shift_then_scale, bool inverse, bool learned) {
  constexpr double kX = 0.8, kRaw = -0.6, kLimit = 1.3, kShift = 0.45, kGradZ = 1.1, kGradLogdet = -0.7;
  double logdet, logdet_back;
  const double z = transform<Scale>(kX, kRaw, kLimit, kShift, shift_then_scale, inverse, &logdet);
  const double back = transform<Scale>(z, kRaw, kLimit, kShift, shift_then_scale, !inverse, &logdet_back);
  expect_close(back, kX, 1e-14, name);
  expect_close(logdet + logdet_back, 0, 1e-14, name);

  const bool shift_first = shift_then_scale != inverse;
  const auto gradient = affine_coupling_gradient(kGradZ, kGradLogdet, shift_first ? z : kX,
                                                 evaluate<Scale>(kRaw, kLimit), shift_first, inverse);
  constexpr double h = 1e-6;
  const auto difference = [&](double dx, double draw, double dlimit, double dshift) {
    const auto loss = [&](double side) {
      double l;
      const double out = transform<Scale>(kX + side * dx, kRaw + side * draw, kLimit + side * dlimit,
                                          kShift + side * dshift, shift_then_scale, inverse, &l);
      return kGradZ * out + kGradLogdet * l;
    };
    return (loss(1) - loss(-1)) / (2 * h);
  };
  expect_close(gradient.x, difference(h, 0, 0, 0), 1e-8, name);
  expect_close(gradient.raw, difference(0, h, 0, 0), 1e-8, name);
  if (learned) expect_close(gradient.limit, difference(0, 0, h, 0), 1e-8, name);
  expect_close(gradient.shift, difference(0, 0, 0, h), 1e-8, name);
}

template <typename Scale>
void test_all(const char* name, double (*wanted)(double raw, double limit), bool learned = false) {
  test_scale<Scale>(name, wanted, learned);
  for (const bool shift_then_scale : {false, true}) {
    for (const bool inverse : {false, true})
      test_inverse_and_gradient<Scale>(name, shift_then_scale, inverse, learned);
  }
}

}  // namespace
}  // namespace flowops

int main() {
  using namespace flowops;
  test_all<AdditiveScale>("additive", [](double, double) { return 1.; });
  test_all<ExpScale>("exp", [](double raw, double) { return std::exp(raw); });
  test_all<TanhExpScale>(
      "tanh_exp", [](double raw, double a) { return std::exp(a * std::tanh(kGain * raw)); }, true);
  test_all<AtanExpScale>(
      "atan_exp", [](double raw, double a) { return std::exp(a * std::atan(kGain * raw)); }, true);
  test_all<SoftsignExpScale>(
      "softsign_exp",
      [](double raw, double a) { return std::exp(a * kGain * raw / (1 + std::abs(kGain * raw))); }, true);
  test_all<SigmoidScale>("sigmoid", [](double raw, double) { return sigmoid(raw + 2); });
  test_all<ReciprocalSigmoidScale>("reciprocal_sigmoid",
                                   [](double raw, double) { return 1 / sigmoid(raw + 2); });
  test_all<FlooredSigmoidScale>("floored sigmoid",
                                [](double raw, double) { return sigmoid(raw + 2) + kFloor; });
  test_all<SoftplusScale>("softplus", [](double raw, double limit) {
    return std::min(std::log1p(std::exp(raw)) + kFloor, limit);
  });
  return testing::exit_status();
}
