// math/logistic_mixture_log_prob.h: probabilities that sum to 1, gradients against differences, extreme
// scales, vectors against single values.
#include <cstdint>
#include <vector>

#include "common/vec_special.h"
#include "math/logistic_mixture_log_prob.h"
#include "tests/expect.h"

namespace flowops {
namespace {

using testing::expect;
using testing::expect_close;

constexpr int kComponents = 3;

template <typename T>
MixtureForm<T> form_of(int levels, double floor = -7) {
  return convert_form<T>({kComponents, levels - 1.0, std::log(2 / (levels - 1.0)), floor});
}

// Numbers without a pattern, the log-scales among them from -2 to 2.
template <int kColours, typename T>
std::vector<T> some_params() {
  std::vector<T> params(kComponents * MixtureLayout<kColours>::kParameters);
  for (size_t i = 0; i < params.size(); ++i) params[i] = T(2 * std::sin(7.0 * double(i) + 1));
  return params;
}

template <typename T>
double log_prob(int levels, int value, const std::vector<T>& params) {
  const auto form = form_of<T>(levels);
  const T n[] = {T(2 * value) - form.top};
  return double(mixture_log_prob(n, [&](int i) { return params[i]; }, form));
}

void test_sums() {
  for (const int levels : {2, 3, 17, 256}) {
    double total = 0;
    for (int x = 0; x < levels; ++x) total += std::exp(log_prob(levels, x, some_params<1, double>()));
    expect_close(total, 1, 1e-13, "probabilities of one colour");
  }
  constexpr int kLevels = 4;
  const auto form = form_of<double>(kLevels);
  const auto params = some_params<3, double>();
  double total = 0;
  for (int x = 0; x < kLevels * kLevels * kLevels; ++x) {
    const double n[] = {2.0 * (x % 4) - form.top, 2.0 * (x / 4 % 4) - form.top, 2.0 * (x / 16) - form.top};
    total += std::exp(mixture_log_prob(n, [&](int i) { return params[i]; }, form));
  }
  expect_close(total, 1, 1e-13, "probabilities of three colours");
}

// At the lowest and the highest value and between them.
void test_gradient() {
  constexpr double kUpstream = -1.3, kStep = 1e-6;
  const auto form = form_of<double>(16);
  auto params = some_params<3, double>();
  const auto get = [&](int i) { return params[i]; };
  for (int x = 0; x < 16; ++x) {
    const double n[] = {2.0 * x - form.top, 2.0 * (15 - x) - form.top, -1};
    std::vector<double> grads(params.size());
    mixture_gradient(kUpstream, n, get, form, [&](int i, double value) { grads[i] = value; });
    for (size_t i = 0; i < params.size(); ++i) {
      const double before = params[i];
      params[i] = before + kStep;
      const double above = mixture_log_prob(n, get, form);
      params[i] = before - kStep;
      const double below = mixture_log_prob(n, get, form);
      params[i] = before;
      expect_close(grads[i], kUpstream * (above - below) / (2 * kStep), 1e-7, "gradient of a parameter");
    }
  }
}

template <typename T>
void test_extremes() {
  // A component a hundred thousand scales away, one of huge scale, and the limit of the log-scale.
  for (const double scale : {-100.0, -7.0, 40.0, 85.0}) {
    std::vector<T> params(9, T(0));
    for (int k = 0; k < kComponents; ++k) params[3 + k] = T(90), params[6 + k] = T(scale);
    for (const int x : {0, 100, 255}) expect(std::isfinite(log_prob(256, x, params)), "finite");
  }
  std::vector<T> params = some_params<1, T>();
  params[4] = std::numeric_limits<T>::quiet_NaN();
  expect(std::isnan(log_prob(256, 3, params)), "NaN of a component that counts");
}

template <typename T>
void test_vectors(double tolerance) {
  constexpr int kLanes = Vec<T>::kLanes, kColours = 3;
  const auto form = form_of<T>(256);
  const auto params = some_params<kColours, T>();
  T values[kColours][kLanes], density[kLanes];
  Vec<T> n[kColours];
  for (int c = 0; c < kColours; ++c) {
    for (int i = 0; i < kLanes; ++i) values[c][i] = T((i + c) % 4 == 0 ? -255 : 2 * (i * 11 + c) - 255);
    n[c] = Vec<T>::load(values[c]);
  }
  const auto get = [&](int i) { return Vec<T>(params[i]); };
  mixture_log_prob(n, get, form).store(density);
  std::vector<Vec<T>> grads(params.size());
  mixture_gradient(Vec<T>(T(0.5)), n, get, form, [&](int i, Vec<T> value) { grads[i] = value; });
  for (int lane = 0; lane < kLanes; ++lane) {
    const T one[] = {values[0][lane], values[1][lane], values[2][lane]};
    const auto get_one = [&](int i) { return params[i]; };
    expect_close(double(density[lane]), double(mixture_log_prob(one, get_one, form)), tolerance,
                 "log-probability of a lane");
    mixture_gradient(T(0.5), one, get_one, form, [&](int i, T value) {
      expect_close(double(grads[i].lanes[lane]), double(value), tolerance, "gradient of a lane");
    });
  }
}

}  // namespace
}  // namespace flowops

int main() {
  flowops::test_sums();
  flowops::test_gradient();
  flowops::test_extremes<float>();
  flowops::test_extremes<double>();
  flowops::test_vectors<float>(2e-5);
  flowops::test_vectors<double>(1e-13);
  return flowops::testing::exit_status();
}
