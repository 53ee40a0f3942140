// Counter-based random numbers: Philox4x32-10 and the Box-Muller transform, for one value or a vector of
// lanes. Torch-free.
//
// Block b of the stream (seed, offset) is philox(counter = (b, offset), key = seed), both 64 bits, low word
// first: four words, so two doubles or four floats, normal or uniform. Number i is value i mod 4 (mod 2) of
// block i div 4 (div 2), whatever the device, the layout, the chunking and the number of threads.
#pragma once

#include <cstdint>

#include "math/special.h"

namespace flowops {

struct PhiloxStream {
  uint64_t seed, offset;
};

// Of a key as tensors hold it.
FLOWOPS_HOST_DEVICE PhiloxStream stream_of(const int64_t* key) {
  return {static_cast<uint64_t>(key[0]), static_cast<uint64_t>(key[1])};
}

inline constexpr uint32_t kPhiloxMultiplier0 = 0xD2511F53u, kPhiloxMultiplier1 = 0xCD9E8D57u;
// The golden ratio and sqrt(3) - 1.
inline constexpr uint32_t kPhiloxWeyl0 = 0x9E3779B9u, kPhiloxWeyl1 = 0xBB67AE85u;
inline constexpr int kPhiloxRounds = 10;
// Numbers that a block gives.
template <typename T>
inline constexpr int kNumbersPerBlock = 16 / static_cast<int>(sizeof(T));

// Both halves of a 64-bit product. W is uint32_t, or a vector whose lanes hold a word in their lower half,
// and above it what is not looked at.
template <typename W>
struct WideProduct {
  W high, low;
  FLOWOPS_HOST_DEVICE WideProduct(W a, uint32_t b);
};
template <>
FLOWOPS_HOST_DEVICE WideProduct<uint32_t>::WideProduct(uint32_t a, uint32_t b)
    : high(static_cast<uint32_t>(uint64_t{a} * b >> 32)), low(a * b) {}

// `words` holds counters and receives their blocks. In a chain each product waits for the one before it: the
// chains take turns.
template <int kChains, typename W>
FLOWOPS_HOST_DEVICE void philox4x32(W (&words)[kChains][4], uint64_t seed) {
  W key0 = W{} + static_cast<uint32_t>(seed), key1 = W{} + static_cast<uint32_t>(seed >> 32);
#ifdef __CUDACC__
#pragma unroll
#endif
  for (int round = 0; round < kPhiloxRounds; ++round) {
    for (auto& chain : words) {
      const WideProduct<W> first(chain[0], kPhiloxMultiplier0), second(chain[2], kPhiloxMultiplier1);
      chain[0] = second.high ^ chain[1] ^ key0;
      chain[1] = second.low;
      chain[2] = first.high ^ chain[3] ^ key1;
      chain[3] = first.low;
    }
    key0 += kPhiloxWeyl0;
    key1 += kPhiloxWeyl1;
  }
}

FLOWOPS_HOST_DEVICE void philox_block(const PhiloxStream& stream, uint64_t block, uint32_t (&words)[4]) {
  uint32_t chain[1][4] = {{static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32),
                           static_cast<uint32_t>(stream.offset), static_cast<uint32_t>(stream.offset >> 32)}};
  philox4x32(chain, stream.seed);
  for (int i = 0; i < 4; ++i) words[i] = chain[0][i];
}

// Random words as wide as a value, and what box_muller does with them.
template <typename V>
struct RandomWords;

template <typename T, typename W, typename S>
struct ScalarWords {
  using Word = W;
  using Scalar = T;
  using Unsigned = W;  // of one lane
  static FLOWOPS_HOST_DEVICE T from_unsigned(W word) { return static_cast<T>(word); }
  static FLOWOPS_HOST_DEVICE T from_signed(W word) { return static_cast<T>(static_cast<S>(word)); }
  static FLOWOPS_HOST_DEVICE T radius(T u) { return sqrt(T(-2) * log(u)); }
  static FLOWOPS_HOST_DEVICE T select_odd(W word, T odd, T even) { return word & 1 ? odd : even; }
  static FLOWOPS_HOST_DEVICE T negate_odd(W word, T value) { return word & 1 ? -value : value; }
};
template <>
struct RandomWords<float> : ScalarWords<float, uint32_t, int32_t> {};
template <>
struct RandomWords<double> : ScalarWords<double, uint64_t, int64_t> {};

// Taylor polynomials of sin and cos on [-pi/4, pi/4], to rounding.
template <typename V, typename T>
FLOWOPS_HOST_DEVICE void sine_cosine(V x, V& sine, V& cosine) {
  constexpr int kTerms = sizeof(T) == 4 ? 5 : 9;
  T odd = 1, even = 1;
  for (int k = 1; k < kTerms; ++k) odd /= -T(2 * k) * T(2 * k + 1);
  for (int k = 1; k <= kTerms; ++k) even /= -T(2 * k - 1) * T(2 * k);
  const V square = x * x;
  sine = V(odd);
  cosine = V(even);
  for (int k = kTerms - 1; k >= 1; --k) {
    odd *= -T(2 * k) * T(2 * k + 1);
    sine = sine * square + V(odd);
  }
  for (int k = kTerms; k >= 1; --k) {
    even *= -T(2 * k - 1) * T(2 * k);
    cosine = cosine * square + V(even);
  }
  sine = sine * x;
}

// Two independent standard normal numbers: with u in (0, 1] from the first word and an angle a from the
// second, sqrt(-2 log u) (cos a, sin a). Every bit of the angle counts: the quadrant is taken from the top of
// the word.
template <typename V>
FLOWOPS_HOST_DEVICE void box_muller(typename RandomWords<V>::Word radius_word,
                                    typename RandomWords<V>::Word angle_word, V& first, V& second) {
  using Words = RandomWords<V>;
  using T = typename Words::Scalar;
  constexpr int kBits = 8 * sizeof(T);
  constexpr T kUnit = sizeof(T) == 4 ? T(0x1p-32) : T(0x1p-64);
  const V u = Words::from_unsigned(radius_word) * V(kUnit) + V(kUnit / 2);
  const V radius = Words::radius(u);
  constexpr auto kEighth = typename Words::Unsigned(1) << (kBits - 3);
  const auto quadrant = (angle_word + kEighth) >> (kBits - 2);
  const V angle =
      Words::from_signed(angle_word - (quadrant << (kBits - 2))) * V(kUnit * T(6.283185307179586476925));
  V sine, cosine;
  sine_cosine<V, T>(angle, sine, cosine);
  first = radius * Words::negate_odd((quadrant + 1) >> 1, Words::select_odd(quadrant, sine, cosine));
  second = radius * Words::negate_odd(quadrant >> 1, Words::select_odd(quadrant, cosine, sine));
}

// A number in [0, 1) with all the bits that a T has for it, from a word as wide.
template <typename V>
FLOWOPS_HOST_DEVICE V uniform(typename RandomWords<V>::Word word) {
  using T = typename RandomWords<V>::Scalar;
  constexpr int kUnused = sizeof(T) == 4 ? 8 : 11;
  return RandomWords<V>::from_signed(word >> kUnused) * V(sizeof(T) == 4 ? T(0x1p-24) : T(0x1p-53));
}

// The uniform numbers of one block.
FLOWOPS_HOST_DEVICE void uniform_block(const PhiloxStream& stream, uint64_t block, float (&numbers)[4]) {
  uint32_t words[4];
  philox_block(stream, block, words);
  for (int i = 0; i < 4; ++i) numbers[i] = uniform<float>(words[i]);
}

FLOWOPS_HOST_DEVICE void uniform_block(const PhiloxStream& stream, uint64_t block, double (&numbers)[2]) {
  uint32_t words[4];
  philox_block(stream, block, words);
  numbers[0] = uniform<double>(uint64_t{words[1]} << 32 | words[0]);
  numbers[1] = uniform<double>(uint64_t{words[3]} << 32 | words[2]);
}

// The normal numbers of one block.
FLOWOPS_HOST_DEVICE void normal_block(const PhiloxStream& stream, uint64_t block, float (&normals)[4]) {
  uint32_t words[4];
  philox_block(stream, block, words);
  box_muller(words[0], words[1], normals[0], normals[1]);
  box_muller(words[2], words[3], normals[2], normals[3]);
}

FLOWOPS_HOST_DEVICE void normal_block(const PhiloxStream& stream, uint64_t block, double (&normals)[2]) {
  uint32_t words[4];
  philox_block(stream, block, words);
  box_muller(uint64_t{words[1]} << 32 | words[0], uint64_t{words[3]} << 32 | words[2], normals[0],
             normals[1]);
}

}  // namespace flowops
