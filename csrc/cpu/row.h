// Contiguous rows between memory and arithmetic type, a vector at a time: the compiler's own loops over
// c10::BFloat16 and c10::Half stay scalar, and are slow on short rows even for float.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdint>
#include <type_traits>

#include "common/vec.h"

namespace flowops {

// Elements of 16 bits, as many as a Vec<float> has lanes.
typedef uint16_t HalfBits __attribute__((vector_size(kVectorBytes / 2)));
typedef uint32_t WordBits __attribute__((vector_size(kVectorBytes)));

template <typename scalar_t, typename opmath_t>
inline constexpr bool kVectorConversion = std::is_same_v<scalar_t, opmath_t> ||
#ifdef __F16C__
                                          std::is_same_v<scalar_t, c10::Half> ||
#endif
                                          std::is_same_v<scalar_t, c10::BFloat16>;

template <typename T>
FLOWOPS_INLINE Vec<T> load_vector(const T* source) {
  return Vec<T>::load(source);
}

template <typename T>
FLOWOPS_INLINE void store_vector(T* target, Vec<T> value) {
  value.store(target);
}

FLOWOPS_INLINE Vec<float> load_vector(const c10::BFloat16* source) {
  HalfBits bits;
  std::memcpy(&bits, source, sizeof(bits));
  const WordBits words = __builtin_convertvector(bits, WordBits) << 16;
  Vec<float> result;
  std::memcpy(&result.lanes, &words, sizeof(words));
  return result;
}

// To the nearest, ties to even; NaN becomes the quiet NaN that c10::BFloat16 makes of it.
FLOWOPS_INLINE void store_vector(c10::BFloat16* target, Vec<float> value) {
  WordBits words;
  std::memcpy(&words, &value.lanes, sizeof(words));
  const WordBits rounded = (words + 0x7fff + ((words >> 16) & 1)) >> 16;
  const WordBits quiet_nan = WordBits{} + 0x7fc0;
  const HalfBits bits = __builtin_convertvector((value != value).lanes ? quiet_nan : rounded, HalfBits);
  std::memcpy(target, &bits, sizeof(bits));
}

#ifdef __F16C__
FLOWOPS_INLINE Vec<float> load_vector(const c10::Half* source) {
#ifdef __AVX512F__
  return Vec<float>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(source))));
#else
  return Vec<float>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(source))));
#endif
}

FLOWOPS_INLINE void store_vector(c10::Half* target, Vec<float> value) {
#ifdef __AVX512F__
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(target),
                      _mm512_cvtps_ph(value.lanes, _MM_FROUND_TO_NEAREST_INT));
#else
  _mm_storeu_si128(reinterpret_cast<__m128i*>(target),
                   _mm256_cvtps_ph(value.lanes, _MM_FROUND_TO_NEAREST_INT));
#endif
}
#endif

template <typename scalar_t, typename opmath_t>
void load_row(const scalar_t* source, opmath_t* target, int64_t size) {
  int64_t i = 0;
  if constexpr (kVectorConversion<scalar_t, opmath_t>) {
    constexpr int kLanes = Vec<opmath_t>::kLanes;
    for (; i + kLanes <= size; i += kLanes) load_vector(source + i).store(target + i);
  }
  for (; i < size; ++i) target[i] = static_cast<opmath_t>(source[i]);
}

template <typename scalar_t, typename opmath_t>
void store_row(const opmath_t* source, scalar_t* target, int64_t size) {
  int64_t i = 0;
  if constexpr (kVectorConversion<scalar_t, opmath_t>) {
    constexpr int kLanes = Vec<opmath_t>::kLanes;
    for (; i + kLanes <= size; i += kLanes) store_vector(target + i, Vec<opmath_t>::load(source + i));
  }
  for (; i < size; ++i) target[i] = static_cast<scalar_t>(source[i]);
}

}  // namespace flowops
