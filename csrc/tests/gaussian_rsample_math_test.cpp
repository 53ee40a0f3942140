// math/philox.h and math/gaussian_rsample.h: published vectors, vectors of blocks against single ones,
// gradients against differences.
#include <cstdint>
#include <initializer_list>

#include "cpu/philox.h"
#include "math/gaussian_rsample.h"
#include "tests/expect.h"

namespace flowops {
namespace {

using testing::expect;
using testing::expect_close;

// Random123, kat_vectors: philox4x32 with 10 rounds.
void test_published_vectors() {
  struct Vector {
    uint32_t counter[4], key[2], result[4];
  };
  const Vector vectors[] = {
      {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
      {{~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
      {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
       {0xa4093822, 0x299f31d0},
       {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
  };
  for (const Vector& v : vectors) {
    const uint64_t block = uint64_t{v.counter[1]} << 32 | v.counter[0];
    const PhiloxStream stream{uint64_t{v.key[1]} << 32 | v.key[0],
                              uint64_t{v.counter[3]} << 32 | v.counter[2]};
    uint32_t words[4];
    philox_block(stream, block, words);
    for (int i = 0; i < 4; ++i) expect(words[i] == v.result[i], "a published word");
    PhiloxWords many[kPhiloxVectors][4];
    philox_blocks(stream, block, many);
    for (int i = 0; i < 4; ++i) expect(many[0][i][0] == v.result[i], "a published word, in a vector");
  }
}

// The counter's carry into its high word included.
template <typename T>
void test_vectors_of_blocks(double tolerance) {
  constexpr int kPer = kNumbersPerBlock<T>;
  const PhiloxStream stream{0x123456789abcdef0, 0xfedcba9876543210};
  for (const uint64_t first : {uint64_t{0}, uint64_t{7}, uint64_t{0xffffffff} - 2, ~uint64_t{0} - 5}) {
    T many[kBlocksAtOnce * kPer], one[kPer];
    normal_blocks(stream, first, many);
    for (int b = 0; b < kBlocksAtOnce; ++b) {
      normal_block(stream, first + uint64_t(b), one);
      for (int i = 0; i < kPer; ++i) {
        expect_close(double(many[b * kPer + i]), double(one[i]), tolerance, "a normal number of a vector");
      }
    }
  }
}

template <typename T>
void test_extreme_words(double tolerance) {
  using Words = RandomWords<T>;
  using W = typename Words::Word;
  T first, second;
  box_muller(W{0}, W{0}, first, second);
  const double largest = std::sqrt(2 * std::log(2.0) * (8 * sizeof(T) + 1));
  expect_close(double(first), largest, tolerance, "the largest radius");
  expect_close(double(second), 0, tolerance, "at angle 0");
  box_muller(W(~W{0}), W{1} << (8 * sizeof(T) - 2), first, second);
  expect_close(double(first), 0, tolerance, "radius 0");
  expect_close(double(second), 0, tolerance, "radius 0");
  for (int k = 0; k < 32; ++k) {
    // 31 does not divide a turn: every quadrant from edge to edge.
    const W word = static_cast<W>(~W{0} / 31 * W(k));
    box_muller(W{0}, word, first, second);
    const double turn = 2 * std::acos(-1.0) * std::ldexp(double(word), -8 * int(sizeof(T)));
    expect_close(double(first), largest * std::cos(turn), tolerance, "cosine of the angle");
    expect_close(double(second), largest * std::sin(turn), tolerance, "sine of the angle");
  }
  box_muller(W{0}, W{3} << (8 * sizeof(T) - 2), first, second);
  expect_close(double(second), -largest, tolerance, "three quarters of a turn");
}

struct Loss {
  double mean, raw, prior_mean, prior_raw;
};

constexpr double kNoise = 0.7, kUpstream = 1.3, kUpstreamKl = -0.6;

template <typename Scale>
GaussianPrior<double> prior_of(const Loss& at, bool has_prior) {
  return has_prior ? gaussian_prior<Scale>(at.prior_mean, at.prior_raw, true) : standard_prior<double>();
}

template <typename Scale>
double loss(const Loss& at, bool has_prior, bool residual) {
  const auto prior = prior_of<Scale>(at, has_prior);
  const double std = Scale::std(at.raw);
  return kUpstream * gaussian_sample(at.mean, std, kNoise, prior, residual) +
         kUpstreamKl * gaussian_kl(gaussian_gap<Scale>(at.mean, at.raw, std, prior, residual));
}

template <typename Scale>
void test_gradient(bool has_prior, bool residual) {
  const Loss at{0.4, 0.8, -0.3, 0.5};
  const auto gradient =
      gaussian_gradient<Scale>(kUpstream, kUpstreamKl, kNoise, at.mean, at.raw, at.prior_raw,
                               prior_of<Scale>(at, has_prior), has_prior, residual, true);
  const auto difference = [&](double Loss::* member) {
    constexpr double kStep = 1e-6;
    Loss above = at, below = at;
    above.*member += kStep, below.*member -= kStep;
    return (loss<Scale>(above, has_prior, residual) - loss<Scale>(below, has_prior, residual)) / (2 * kStep);
  };
  expect_close(gradient.mean, difference(&Loss::mean), 1e-8, "gradient of the mean");
  expect_close(gradient.scale, difference(&Loss::raw), 1e-8, "gradient of the scale");
  if (!has_prior) return;
  expect_close(gradient.prior_mean, difference(&Loss::prior_mean), 1e-8, "gradient of the prior's mean");
  expect_close(gradient.prior_scale, difference(&Loss::prior_raw), 1e-8, "gradient of the prior's scale");
}

template <typename Scale>
void test_scale() {
  test_gradient<Scale>(false, false);
  test_gradient<Scale>(true, false);
  test_gradient<Scale>(true, true);
  const double raw = 0.3, std = Scale::std(raw);
  expect_close(Scale::log_std(raw, std), std::log(std), 1e-15, "log of the deviation");
  // The KL of a Gaussian from itself.
  const auto itself = gaussian_prior<Scale>(1.5, raw, true);
  expect_close(gaussian_kl(gaussian_gap<Scale>(1.5, raw, std, itself, false)), 0, 1e-15, "KL of itself");
}

}  // namespace
}  // namespace flowops

int main() {
  flowops::test_published_vectors();
  flowops::test_vectors_of_blocks<float>(1e-6);
  flowops::test_vectors_of_blocks<double>(1e-14);
  flowops::test_extreme_words<float>(1e-6);
  flowops::test_extreme_words<double>(1e-14);
  flowops::test_scale<flowops::LogVarianceScale>();
  flowops::test_scale<flowops::LogStdScale>();
  flowops::test_scale<flowops::StdScale>();
  flowops::test_scale<flowops::SoftplusScale>();
  return flowops::testing::exit_status();
}
