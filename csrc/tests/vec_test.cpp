// common/vec*.h and cpu/transpose.h against the C library in double, lane by lane; built once for each
// instruction set.
#include <algorithm>
#include <limits>
#include <random>

#include "common/vec_pair.h"
#include "cpu/transpose.h"
#include "tests/expect.h"
#include "tests/machine.h"

namespace flowops {
namespace {

using testing::expect;
using testing::expect_close;

template <typename T, typename Function, typename Wanted>
void compare(const char* what, T low, T high, Function function, Wanted wanted, double epsilons = 8) {
  constexpr int kLanes = Vec<T>::kLanes;
  const double tolerance = epsilons * static_cast<double>(std::numeric_limits<T>::epsilon());
  std::mt19937_64 random(1);
  std::uniform_real_distribution<T> draw(low, high);
  for (int repeat = 0; repeat < 2000; ++repeat) {
    T input[kLanes], output[kLanes];
    for (T& value : input) value = draw(random);
    function(Vec<T>::load(input)).store(output);
    for (int lane = 0; lane < kLanes; ++lane) {
      const double truth = wanted(static_cast<double>(input[lane]));
      const double size = std::fmax(std::fabs(truth), std::numeric_limits<T>::min());
      expect_close((output[lane] - truth) / size, 0, tolerance, what);
    }
  }
}

template <typename T>
void test_functions() {
  const auto exp_lanes = [](Vec<T> x) { return exp(x); };
  const auto log_lanes = [](Vec<T> x) { return log(x); };
  const auto tanh_lanes = [](Vec<T> x) { return tanh(x); };
  const auto quotient_lanes = [](Vec<T> x) { return quotient(Vec<T>(T(0.3)), x); };
  const auto log1p_lanes = [](Vec<T> x) { return log1p(x); };
  compare<T>("quotient", 1, 2, quotient_lanes, [](double x) { return double(T(0.3)) / x; });
  compare<T>("quotient by any number", T(1e-30), T(1e30), quotient_lanes,
             [](double x) { return double(T(0.3)) / x; });
  compare<T>("log1p", 0, 1, log1p_lanes, [](double x) { return std::log1p(x); }, 3);
  const auto atan_lanes = [](Vec<T> x) { return atan(x); };
  compare<T>("atan", T(-9), T(9), atan_lanes, [](double x) { return std::atan(x); }, 4);
  compare<T>("atan far out", T(9), T(1e30), atan_lanes, [](double x) { return std::atan(x); }, 4);
  compare<T>("log1p near zero", 0, T(1e-5), log1p_lanes, [](double x) { return std::log1p(x); }, 3);
  compare<T>("exp near zero", -2, 2, exp_lanes, [](double x) { return std::exp(x); }, 2);
  // A rounding of x is worth |x| / 2 epsilons, and as much again comes from the float constant.
  compare<T>("exp", -80, 80, exp_lanes, [](double x) { return std::exp(x); }, 60);
  compare<T>("log", T(1.5), T(1e6), log_lanes, [](double x) { return std::log(x); });
  compare<T>("log near zero", T(1e-6), T(0.5), log_lanes, [](double x) { return std::log(x); });
  compare<T>("tanh", -3, 3, tanh_lanes, [](double x) { return std::tanh(x); });
  compare<T>("tanh near zero", T(-1e-3), T(1e-3), tanh_lanes, [](double x) { return std::tanh(x); });
}

template <typename T>
void test_reduce_rows() {
  constexpr int kLanes = Vec<T>::kLanes;
  Vec<T> rows[kLanes];
  for (int row = 0; row < kLanes; ++row) {
    for (int lane = 0; lane < kLanes; ++lane) rows[row].lanes[lane] = T(row * 100 + lane);
  }
  const Vec<T> sums = reduce_rows(rows, [](Vec<T> a, Vec<T> b) { return a + b; });
  for (int row = 0; row < kLanes; ++row) {
    expect_close(sums.lanes[row], kLanes * (row * 100 + (kLanes - 1) / 2.), 0, "sum of a row");
  }
}

template <typename T>
void test_special_values() {
  const T infinity = std::numeric_limits<T>::infinity(), nan = std::numeric_limits<T>::quiet_NaN();
  expect_close(exp(Vec<T>(-infinity)).lanes[0], 0, 0, "exp of -inf");
  expect_close(exp(Vec<T>(infinity)).lanes[0], infinity, 0, "exp of inf");
  expect_close(exp(Vec<T>(T(0))).lanes[0], 1, 0, "exp of 0");
  expect(std::isnan(exp(Vec<T>(nan)).lanes[0]), "exp of NaN is NaN");
  expect(std::isnan(minimum(Vec<T>(nan), Vec<T>(0)).lanes[0]), "minimum of NaN and 0 is NaN");
  expect_close(minimum(Vec<T>(1), Vec<T>(-2)).lanes[0], -2, 0, "minimum");
  expect_close(negative_abs(Vec<T>(3)).lanes[0], -3, 0, "negative_abs of 3");
  expect_close(negative_abs(Vec<T>(-3)).lanes[0], -3, 0, "negative_abs of -3");
  expect(std::isnan(quotient(Vec<T>(T(1)), Vec<T>(nan)).lanes[0]), "quotient by NaN is NaN");
  expect_close(tanh(Vec<T>(infinity)).lanes[0], 1, 0, "tanh of inf");
  expect_close(tanh(Vec<T>(-infinity)).lanes[0], -1, 0, "tanh of -inf");
}

template <typename T>
void test_partial_vectors() {
  constexpr int kLanes = Vec<T>::kLanes;
  T input[kLanes], output[kLanes];
  for (int i = 0; i < kLanes; ++i) {
    input[i] = T(i + 1);
    output[i] = T(-1);
  }
  const Vec<T> part = Vec<T>::load(input, kLanes - 1);
  expect_close(part.sum(), (kLanes - 1) * kLanes / 2, 0, "lanes past the count read as zero");
  part.store(output, kLanes - 1);
  expect_close(output[kLanes - 2], kLanes - 1, 0, "the last counted lane is stored");
  expect_close(output[kLanes - 1], -1, 0, "lanes past the count are not written");
  const Vec<T> masked = select(Vec<T>::first(1), Vec<T>(T(1)), Vec<T>(T(0)));
  expect_close(masked.sum(), 1, 0, "first(1) selects one lane");
}

// What Pair forwards, by an expression in which two operations exchanged would show.
template <typename V>
V all_operations(V x, V y) {
  V result = select(x < y, x * y - x, x / y + y) + select(x > y, exp(-x), log(y)) - sqrt(y) + log1p(y);
  result += select(x >= y, abs(x), quotient(x, y)) * select(x != y, V(3), V(5));
  return result *= y;
}

template <typename T>
void test_pairs() {
  constexpr int kLanes = Vec<T>::kLanes;
  T x[2 * kLanes], y[2 * kLanes], output[2 * kLanes], wanted[2 * kLanes];
  std::mt19937_64 random(2);
  std::uniform_real_distribution<T> draw(-1, 1), positive(T(0.1), 1);
  for (int i = 0; i < 2 * kLanes; ++i) y[i] = positive(random), x[i] = i % 3 == 0 ? y[i] : draw(random);
  using Both = Pair<Vec<T>>;
  all_operations(Both::load(x), Both::load(y)).store(output);
  for (int half = 0; half < 2 * kLanes; half += kLanes) {
    all_operations(Vec<T>::load(x + half), Vec<T>::load(y + half)).store(wanted + half);
  }
  for (int i = 0; i < 2 * kLanes; ++i) expect_close(output[i], wanted[i], 0, "a pair is its two vectors");
  for (int count = 1; count <= 2 * kLanes; ++count) {
    std::fill_n(output, 2 * kLanes, T(-7));
    Both::load(x, count).store(output, 2 * kLanes);
    for (int i = 0; i < 2 * kLanes; ++i) expect_close(output[i], i < count ? x[i] : 0, 0, "part of a pair");
    std::fill_n(output, 2 * kLanes, T(-7));
    Both::load(x).store(output, count);
    for (int i = 0; i < 2 * kLanes; ++i) expect_close(output[i], i < count ? x[i] : -7, 0, "part of a pair");
  }
}

template <typename T>
void test_columns() {
  constexpr int kLanes = Vec<T>::kLanes, kBlock = kColumnBlock<T>, kStride = kBlock + 3;
  T rows[kLanes * kStride], back[kLanes * kStride] = {};
  for (int i = 0; i < kLanes * kStride; ++i) rows[i] = T(i);
  Vec<T> columns[kBlock];
  load_columns(rows + 1, kStride, columns);
  for (int column = 0; column < kBlock; ++column) {
    for (int lane = 0; lane < kLanes; ++lane) {
      expect_close(columns[column].lanes[lane], lane * kStride + 1 + column, 0, "load_columns");
    }
  }
  store_columns(columns, back + 1, kStride);
  for (int i = 0; i < kLanes * kStride; ++i) {
    const int column = i % kStride;
    expect_close(back[i], column >= 1 && column <= kBlock ? i : 0, 0, "store_columns");
  }
}

template <typename T>
void test_all() {
  test_functions<T>();
  test_special_values<T>();
  test_reduce_rows<T>();
  test_partial_vectors<T>();
  test_pairs<T>();
  test_columns<T>();
}

}  // namespace
}  // namespace flowops

int main() {
  if (!flowops::testing::machine_runs_this()) return flowops::testing::kSkipped;
  flowops::test_all<float>();
  flowops::test_all<double>();
  return flowops::testing::exit_status();
}
