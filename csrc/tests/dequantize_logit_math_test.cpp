// math/dequantize_logit.h and the uniform numbers of math/philox.h: inverse, log-derivatives and gradients
// against differences, the ends, vectors against single values and blocks.
#include <cstdint>
#include <initializer_list>
#include <limits>

#include "cpu/philox.h"
#include "math/dequantize_logit.h"
#include "tests/expect.h"

namespace flowops {
namespace {

using testing::expect;
using testing::expect_close;

constexpr double kStep = 1e-6;

void test_map(double alpha, double levels) {
  const LogitMap<double> map(alpha, levels);
  for (const double part : {0.01, 0.3, 0.5, 0.99}) {
    const double t = part * levels, z = logit(t, map).value;
    const double a = alpha + (1 - 2 * alpha) * part;
    expect_close(z, std::log(a / (1 - a)), 1e-13, "the logit");
    expect_close(logit_inverse(z, map).value, t, 1e-12 * levels, "the inverse");
    // The constants, which the kernels add, make the two log-derivatives opposite.
    expect_close(logit(t, map).log_slope, -logit_inverse(z, map).log_slope, 1e-12,
                 "opposite log-derivatives");
    const double slope = (logit(t + kStep, map).value - logit(t - kStep, map).value) / (2 * kStep);
    expect_close(logit(t, map).log_slope + std::log(map.slope), std::log(slope), 1e-6, "log dz/dt");
    const auto loss = [&](double x) { return 1.3 * logit(x, map).value - 0.7 * logit(x, map).log_slope; };
    expect_close(logit_gradient(1.3, -0.7, t, map), (loss(t + kStep) - loss(t - kStep)) / (2 * kStep), 1e-5,
                 "gradient");
    const auto back = [&](double x) {
      return 1.3 * logit_inverse(x, map).value - 0.7 * logit_inverse(x, map).log_slope;
    };
    expect_close(logit_inverse_gradient(1.3, -0.7, z, map), (back(z + kStep) - back(z - kStep)) / (2 * kStep),
                 1e-6, "gradient of the inverse");
  }
}

template <typename T>
void test_ends(double tolerance) {
  for (const double alpha : {0.05, 1e-6, 1e-20}) {
    const LogitMap<T> map(alpha, 256);
    const double size = std::log1p(-alpha) - std::log(alpha);
    expect_close(double(logit(T(0), map).value), -size, tolerance, "the lower end");
    expect_close(double(logit(T(256), map).value), size, tolerance, "the upper end");
  }
  const LogitMap<T> map(0.05, 256);
  expect(std::isnan(logit(T(-100), map).value), "below the domain");
  expect(std::isnan(logit(std::numeric_limits<T>::quiet_NaN(), map).value), "NaN");
  // The greatest noise does not reach the next level.
  expect(dequantized(T(255), std::nextafter(T(1), T(0)), map) < 256, "noise below 1");
  expect(dequantized(T(0), T(0.25), map) == T(0.25), "noise is added");
}

template <typename T>
void test_vectors(double tolerance) {
  constexpr int kLanes = Vec<T>::kLanes;
  const LogitMap<T> map(1e-4, 17);
  T t[kLanes], value[kLanes], slope[kLanes], grad[kLanes], back[kLanes], back_grad[kLanes];
  for (int i = 0; i < kLanes; ++i) t[i] = T(17) * T(i) / T(kLanes - 1);
  const auto v = Vec<T>::load(t);
  const auto image = logit(v, map);
  image.value.store(value), image.log_slope.store(slope);
  logit_gradient(Vec<T>(T(0.7)), Vec<T>(T(-0.3)), v, map).store(grad);
  logit_inverse(image.value, map).value.store(back);
  logit_inverse_gradient(Vec<T>(T(0.7)), Vec<T>(T(-0.3)), image.value, map).store(back_grad);
  for (int i = 0; i < kLanes; ++i) {
    const auto one = logit(t[i], map);
    expect_close(double(value[i]), double(one.value), tolerance, "a lane");
    expect_close(double(slope[i]), double(one.log_slope), tolerance, "log-derivative of a lane");
    expect_close(double(grad[i]), double(logit_gradient(T(0.7), T(-0.3), t[i], map)), tolerance, "gradient");
    expect_close(double(back[i]), double(t[i]), 100 * tolerance, "there and back");
    expect_close(double(back_grad[i]), double(logit_inverse_gradient(T(0.7), T(-0.3), value[i], map)),
                 10 * tolerance, "gradient of the inverse");
  }
}

template <typename T>
void test_uniform_numbers() {
  constexpr int kPer = kNumbersPerBlock<T>;
  const PhiloxStream stream{0x123456789abcdef0, 0xfedcba9876543210};
  for (const uint64_t first : {uint64_t{0}, uint64_t{0xffffffff} - 2, ~uint64_t{0} - 5}) {
    T many[kBlocksAtOnce * kPer], one[kPer];
    uniform_blocks(stream, first, many);
    for (int b = 0; b < kBlocksAtOnce; ++b) {
      uniform_block(stream, first + uint64_t(b), one);
      for (int i = 0; i < kPer; ++i) expect(many[b * kPer + i] == one[i], "a uniform number of a vector");
    }
  }
  using Word = typename RandomWords<T>::Word;
  expect(uniform<T>(Word{0}) == 0, "the least number");
  expect(uniform<T>(~Word{0}) == 1 - std::numeric_limits<T>::epsilon() / 2, "the greatest number");
}

}  // namespace
}  // namespace flowops

int main() {
  flowops::test_map(0.05, 1);
  flowops::test_map(1e-3, 256);
  flowops::test_ends<float>(1e-6);
  flowops::test_ends<double>(1e-14);
  flowops::test_vectors<float>(1e-5);
  flowops::test_vectors<double>(1e-13);
  flowops::test_uniform_numbers<float>();
  flowops::test_uniform_numbers<double>();
  return flowops::testing::exit_status();
}
