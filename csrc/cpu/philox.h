// The stream of math/philox.h, a vector of blocks at a time. Torch-free.
#pragma once

#ifdef __SSE2__
#include <immintrin.h>
#endif

#include "common/vec_special.h"
#include "math/philox.h"

namespace flowops {

// 32-bit words, one a block, and half as many, each in the lower half of a lane.
typedef uint32_t PhiloxWords __attribute__((vector_size(kVectorBytes)));
typedef uint64_t PhiloxWordPairs __attribute__((vector_size(kVectorBytes)));
inline constexpr int kWordLanes = kVectorBytes / 4;
// Vectors of words that are made together: two where there are registers for both.
inline constexpr int kPhiloxVectors = kVectorBytes == 64 ? 2 : 1;
inline constexpr int kBlocksAtOnce = kPhiloxVectors * kWordLanes;

template <>
FLOWOPS_INLINE WideProduct<PhiloxWordPairs>::WideProduct(PhiloxWordPairs a, uint32_t b) {
#if defined(__AVX512F__)
  const __m512i factor = _mm512_set1_epi32(static_cast<int>(b));
  low = reinterpret_cast<PhiloxWordPairs>(_mm512_maskz_mul_epu32(-1, reinterpret_cast<__m512i>(a), factor));
#elif defined(__AVX2__)
  const __m256i factor = _mm256_set1_epi32(static_cast<int>(b));
  low = reinterpret_cast<PhiloxWordPairs>(_mm256_mul_epu32(reinterpret_cast<__m256i>(a), factor));
#elif defined(__SSE2__)
  const __m128i factor = _mm_set1_epi32(static_cast<int>(b));
  low = reinterpret_cast<PhiloxWordPairs>(_mm_mul_epu32(reinterpret_cast<__m128i>(a), factor));
#else
  for (int i = 0; i < kWordLanes / 2; ++i) low[i] = uint64_t{static_cast<uint32_t>(a[i])} * b;
#endif
  high = low >> 32;
}

#ifdef __AVX512F__
// sqrt(-2 log u) for u in (0, 1], without divider and square root, which would take as long as all the rest:
// the logarithm of common/vec.h with an estimate of the reciprocal, and an estimate of the reciprocal root,
// each with one step of Newton's.
FLOWOPS_INLINE Vec<float> estimated_radius(Vec<float> u) {
  using V = Vec<float>;
  using Traits = FloatTraits<float>;
  constexpr uint32_t kSqrtHalf = 0x3f3504f3;
  const PhiloxWords bits = reinterpret_cast<PhiloxWords>(u.lanes);
  const V::Bits exponent = reinterpret_cast<V::Bits>(bits - kSqrtHalf) >> Traits::kMantissaBits;
  const V m(
      reinterpret_cast<V::Native>(reinterpret_cast<V::Bits>(bits) - (exponent << Traits::kMantissaBits)));
  const V above = m + V(1), estimate(_mm512_maskz_rcp14_ps(-1, above.lanes));
  const V f = (m - V(1)) * (estimate + estimate * (V(1) - above * estimate)), f2 = f * f;
  V p(2.f / float(2 * Traits::kLogTerms - 1));
  for (int k = Traits::kLogTerms - 1; k >= 1; --k) p = p * f2 + V(2.f / float(2 * k - 1));
  const V e(__builtin_convertvector(exponent, V::Native));
  const V square = V(-2) * (e * V(Traits::kLn2High) + (e * V(Traits::kLn2Low) + f * p));
  const V root(_mm512_maskz_rsqrt14_ps(-1, square.lanes)), radius = square * root;
  const V better = radius + V(0.5f) * radius * (V(1) - radius * root);
  return select(square > V(0), better, V(0));  // at u = 1 the root is infinite
}
#endif

template <typename T, typename W>
struct VectorWords {
  using Word = W;
  using Scalar = T;
  using Bits = typename Vec<T>::Bits;
  using Native = typename Vec<T>::Native;
  using Unsigned = std::make_unsigned_t<typename Vec<T>::Int>;
  static FLOWOPS_INLINE Vec<T> from_unsigned(W word) { return Vec<T>(__builtin_convertvector(word, Native)); }
  static FLOWOPS_INLINE Vec<T> from_signed(W word) {
    return Vec<T>(__builtin_convertvector(reinterpret_cast<Bits>(word), Native));
  }
  static FLOWOPS_INLINE Vec<T> radius(Vec<T> u) {
#ifdef __AVX512F__
    if constexpr (sizeof(T) == 4) return estimated_radius(u);
#endif
    return sqrt(Vec<T>(-2) * log(u));
  }
  static FLOWOPS_INLINE Vec<T> select_odd(W word, Vec<T> odd, Vec<T> even) {
    return Vec<T>((word & 1) != 0 ? odd.lanes : even.lanes);
  }
  static FLOWOPS_INLINE Vec<T> negate_odd(W word, Vec<T> value) {
    const W sign = word << (8 * sizeof(T) - 1);
    return Vec<T>(reinterpret_cast<Native>(reinterpret_cast<W>(value.lanes) ^ sign));
  }
};
template <>
struct RandomWords<Vec<float>> : VectorWords<float, PhiloxWords> {};
template <>
struct RandomWords<Vec<double>> : VectorWords<double, PhiloxWordPairs> {};

// Four vectors, lane i of the j-th holding value j of block lane_block(i), to memory in the order of the
// blocks. lane_block is chosen so that interleaving within 16 bytes is enough.
FLOWOPS_INLINE constexpr int lane_block(int lane) {
  constexpr int kQuads = kWordLanes / 4;
  return lane % 4 * kQuads + lane / 4;
}

template <typename Lanes>
FLOWOPS_INLINE void store_interleaved(const Lanes (&values)[4], void* target) {
  constexpr int kBytes = sizeof(Lanes);
  static_assert(kBytes == kVectorBytes);
  char* out = static_cast<char*>(target);
#if defined(__AVX512F__)
  const __m512i a = reinterpret_cast<__m512i>(values[0]), b = reinterpret_cast<__m512i>(values[1]);
  const __m512i c = reinterpret_cast<__m512i>(values[2]), d = reinterpret_cast<__m512i>(values[3]);
  const __m512i ab[2] = {_mm512_maskz_unpacklo_epi32(-1, a, b), _mm512_maskz_unpackhi_epi32(-1, a, b)};
  const __m512i cd[2] = {_mm512_maskz_unpacklo_epi32(-1, c, d), _mm512_maskz_unpackhi_epi32(-1, c, d)};
  for (int i = 0; i < 2; ++i) {
    _mm512_storeu_si512(out + 2 * i * kBytes, _mm512_maskz_unpacklo_epi64(-1, ab[i], cd[i]));
    _mm512_storeu_si512(out + (2 * i + 1) * kBytes, _mm512_maskz_unpackhi_epi64(-1, ab[i], cd[i]));
  }
#elif defined(__AVX2__)
  const __m256i a = reinterpret_cast<__m256i>(values[0]), b = reinterpret_cast<__m256i>(values[1]);
  const __m256i c = reinterpret_cast<__m256i>(values[2]), d = reinterpret_cast<__m256i>(values[3]);
  const __m256i ab[2] = {_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b)};
  const __m256i cd[2] = {_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d)};
  for (int i = 0; i < 2; ++i) {
    const __m256i low = _mm256_unpacklo_epi64(ab[i], cd[i]), high = _mm256_unpackhi_epi64(ab[i], cd[i]);
    std::memcpy(out + 2 * i * kBytes, &low, kBytes);
    std::memcpy(out + (2 * i + 1) * kBytes, &high, kBytes);
  }
#else
  uint32_t lanes[4][kWordLanes], ordered[4 * kWordLanes];
  std::memcpy(lanes, values, sizeof(lanes));
  for (int i = 0; i < kWordLanes; ++i) {
    for (int j = 0; j < 4; ++j) ordered[4 * lane_block(i) + j] = lanes[j][i];
  }
  std::memcpy(out, ordered, sizeof(ordered));
#endif
}

// The words of kBlocksAtOnce blocks, lane i of words[v] those of block `first` + v kWordLanes +
// lane_block(i).
FLOWOPS_INLINE void philox_blocks(const PhiloxStream& stream, uint64_t first,
                                  PhiloxWords (&words)[kPhiloxVectors][4]) {
  PhiloxWords step;
  for (int i = 0; i < kWordLanes; ++i) step[i] = lane_block(i);
  PhiloxWordPairs chains[2 * kPhiloxVectors][4];  // of the even lanes of a vector, then of the odd ones
  for (int v = 0; v < kPhiloxVectors; ++v, first += kWordLanes) {
    const PhiloxWords low = static_cast<uint32_t>(first) + step;
    // A lane whose sum wraps around carries into the high word.
    const PhiloxWords high = static_cast<uint32_t>(first >> 32) - reinterpret_cast<PhiloxWords>(low < step);
    for (int odd = 0; odd < 2; ++odd) {
      auto& chain = chains[2 * v + odd];
      chain[0] = reinterpret_cast<PhiloxWordPairs>(low) >> (32 * odd);
      chain[1] = reinterpret_cast<PhiloxWordPairs>(high) >> (32 * odd);
      chain[2] = PhiloxWordPairs{} + (stream.offset & 0xFFFFFFFFu);
      chain[3] = PhiloxWordPairs{} + (stream.offset >> 32);
    }
  }
  philox4x32(chains, stream.seed);
  for (int v = 0; v < kPhiloxVectors; ++v) {
    for (int i = 0; i < 4; ++i) {
      const PhiloxWordPairs even = chains[2 * v][i], odd = chains[2 * v + 1][i];
      words[v][i] = reinterpret_cast<PhiloxWords>((even & 0xFFFFFFFFu) | odd << 32);
    }
  }
}

// The words of kBlocksAtOnce blocks in the order of the stream.
FLOWOPS_INLINE void philox_words(const PhiloxStream& stream, uint64_t first,
                                 uint32_t (&ordered)[4 * kBlocksAtOnce]) {
  PhiloxWords words[kPhiloxVectors][4];
  philox_blocks(stream, first, words);
  for (int v = 0; v < kPhiloxVectors; ++v) store_interleaved(words[v], ordered + v * 4 * kWordLanes);
}

// kBlocksAtOnce blocks of floats from block `first` on: `make` turns the words of kWordLanes into numbers.
template <typename Make>
FLOWOPS_INLINE void float_blocks(const PhiloxStream& stream, uint64_t first, float* target,
                                 const Make& make) {
  PhiloxWords words[kPhiloxVectors][4];
  philox_blocks(stream, first, words);
#pragma GCC unroll 2
  for (int v = 0; v < kPhiloxVectors; ++v) {
    Vec<float> numbers[4];
    make(words[v], numbers);
    Vec<float>::Native lanes[4];
    for (int i = 0; i < 4; ++i) lanes[i] = numbers[i].lanes;
    store_interleaved(lanes, target + v * 4 * kWordLanes);
  }
}

FLOWOPS_INLINE void normal_blocks(const PhiloxStream& stream, uint64_t first, float* target) {
  float_blocks(stream, first, target, [](const PhiloxWords(&words)[4], Vec<float>(&normals)[4]) {
    box_muller(words[0], words[1], normals[0], normals[1]);
    box_muller(words[2], words[3], normals[2], normals[3]);
  });
}

// The same of doubles, from the words in memory.
inline void normal_blocks(const PhiloxStream& stream, uint64_t first, double* target) {
  using V = Vec<double>;
  uint32_t ordered[4 * kBlocksAtOnce];
  philox_words(stream, first, ordered);
  for (int block = 0; block < kBlocksAtOnce; block += V::kLanes) {
    PhiloxWordPairs radius, angle;
    for (int i = 0; i < V::kLanes; ++i) {
      const uint32_t* w = ordered + 4 * (block + i);
      radius[i] = uint64_t{w[1]} << 32 | w[0];
      angle[i] = uint64_t{w[3]} << 32 | w[2];
    }
    V one, other;
    box_muller(radius, angle, one, other);
    for (int i = 0; i < V::kLanes; ++i) {
      target[2 * (block + i)] = one.lanes[i];
      target[2 * (block + i) + 1] = other.lanes[i];
    }
  }
}

FLOWOPS_INLINE void uniform_blocks(const PhiloxStream& stream, uint64_t first, float* target) {
  float_blocks(stream, first, target, [](const PhiloxWords(&words)[4], Vec<float>(&numbers)[4]) {
    for (int i = 0; i < 4; ++i) numbers[i] = uniform<Vec<float>>(words[i]);
  });
}

inline void uniform_blocks(const PhiloxStream& stream, uint64_t first, double* target) {
  uint32_t ordered[4 * kBlocksAtOnce];
  philox_words(stream, first, ordered);
  for (int i = 0; i < 2 * kBlocksAtOnce; ++i) {
    target[i] = uniform<double>(uint64_t{ordered[2 * i + 1]} << 32 | ordered[2 * i]);
  }
}

// Elements that a buffer for `count` random numbers of any first element must hold.
template <typename T>
constexpr int64_t random_buffer_size(int64_t count) {
  const int64_t step = kBlocksAtOnce * kNumbersPerBlock<T>;
  return (count + kNumbersPerBlock<T> - 1 + step - 1) / step * step;
}

// Numbers [first, first + count) of the stream, somewhere in `buffer`; `draw(block, target)` makes
// kBlocksAtOnce blocks.
template <typename T, typename Draw>
FLOWOPS_INLINE const T* random_range(int64_t first, int64_t count, T* buffer, const Draw& draw) {
  constexpr int64_t kPer = kNumbersPerBlock<T>;
  const int64_t skip = first % kPer;
  int64_t block = first / kPer;
  for (int64_t i = 0; i < skip + count; i += kBlocksAtOnce * kPer, block += kBlocksAtOnce) {
    draw(static_cast<uint64_t>(block), buffer + i);
  }
  return buffer + skip;
}

template <typename T>
const T* normal_range(const PhiloxStream& stream, int64_t first, int64_t count, T* buffer) {
  return random_range(first, count, buffer,
                      [&](uint64_t block, T* target) { normal_blocks(stream, block, target); });
}

template <typename T>
const T* uniform_range(const PhiloxStream& stream, int64_t first, int64_t count, T* buffer) {
  return random_range(first, count, buffer,
                      [&](uint64_t block, T* target) { uniform_blocks(stream, block, target); });
}

}  // namespace flowops
