// cpu/row.h against the conversions of c10, element by element; built once for each instruction set.
#include "cpu/row.h"

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "tests/expect.h"
#include "tests/machine.h"

namespace flowops {
namespace {

using testing::expect;

// Ties, what rounds up to infinity, subnormals and NaNs whose bits are all ones among ordinary numbers.
std::vector<float> numbers() {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  std::vector<float> values = {
      0.f,     -0.f,   1.f + 0x1p-8f, 1.f + 0x3p-8f, 1.f + 0x1p-11f, 1.f + 0x3p-11f, 3.4e38f,      65519.f,
      65520.f, 1e-40f, 1e-7f,         -1e-7f,        kInfinity,      -kInfinity,     std::nanf("")};
  uint32_t ones = 0xffffffff;
  float poison;
  std::memcpy(&poison, &ones, sizeof(poison));
  values.push_back(poison);
  std::mt19937_64 random(1);
  std::normal_distribution<float> draw(0, 100);
  while (values.size() < 200) values.push_back(draw(random));
  return values;
}

template <typename S>
bool same(S a, S b) {
  return std::memcmp(&a, &b, sizeof(S)) == 0 || (a != a && b != b);
}

// `size` elements from each offset: whole vectors and short ends; nothing behind them is touched.
template <typename S, typename T>
void test_rows(const char* what) {
  const auto wide = numbers();
  std::vector<S> narrow(wide.begin(), wide.end());
  for (int64_t size = 0; size <= 70; ++size) {
    for (int64_t offset = 0; offset + size <= static_cast<int64_t>(wide.size()); offset += 13) {
      std::vector<T> loaded(size + 1, T(7));
      load_row(narrow.data() + offset, loaded.data(), size);
      for (int64_t i = 0; i < size; ++i) expect(same(loaded[i], static_cast<T>(narrow[offset + i])), what);
      expect(loaded[size] == T(7), what);
      std::vector<T> source(wide.begin() + offset, wide.begin() + offset + size);
      std::vector<S> stored(size + 1, S(7));
      store_row(source.data(), stored.data(), size);
      for (int64_t i = 0; i < size; ++i) expect(same(stored[i], static_cast<S>(source[i])), what);
      expect(stored[size] == S(7), what);
    }
  }
}

template <typename S, typename T>
void test_short_vectors(const char* what) {
  constexpr int kLanes = Vec<T>::kLanes;
  const auto wide = numbers();
  const std::vector<S> narrow(wide.begin(), wide.end());
  for (int64_t count = 1; count < kLanes; ++count) {
    const auto lanes = load_lanes<T>(narrow.data(), count);
    std::vector<S> stored(kLanes, S(7));
    store_lanes(stored.data(), Vec<T>(T(3)), count);
    for (int64_t i = 0; i < kLanes; ++i) {
      expect(same(T(lanes.lanes[i]), i < count ? static_cast<T>(narrow[i]) : T(0)), what);
      expect(stored[i] == S(i < count ? 3 : 7), what);
    }
  }
}

template <typename S, typename T>
void test_pair(const char* what) {
  test_rows<S, T>(what);
  test_short_vectors<S, T>(what);
}

}  // namespace
}  // namespace flowops

int main() {
  if (!flowops::testing::machine_runs_this()) return flowops::testing::kSkipped;
  flowops::test_pair<c10::BFloat16, float>("bfloat16");
  flowops::test_pair<c10::Half, float>("float16");
  flowops::test_pair<float, float>("float32");
  flowops::test_pair<double, double>("float64");
  flowops::test_rows<c10::BFloat16, c10::BFloat16>("bfloat16 as it is");
  flowops::test_rows<c10::Half, c10::Half>("float16 as it is");
  return flowops::testing::exit_status();
}
