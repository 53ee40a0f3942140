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

// Whether there is widen() and narrow() between the two.
template <typename scalar_t, typename opmath_t>
inline constexpr bool kVectorConversion =
#ifdef __F16C__
    std::is_same_v<scalar_t, c10::Half> ||
#endif
    std::is_same_v<scalar_t, c10::BFloat16>;

FLOWOPS_INLINE Vec<float> widen(c10::BFloat16, HalfBits bits) {
#if defined(__AVX512F__)  // the compiler widens half a vector at a time
  const __m512i words = _mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)bits), 16);
#elif defined(__AVX2__)
  const __m256i words = _mm256_slli_epi32(_mm256_cvtepu16_epi32((__m128i)bits), 16);
#else
  const WordBits words = __builtin_convertvector(bits, WordBits) << 16;
#endif
  Vec<float> result;
  std::memcpy(&result.lanes, &words, sizeof(words));
  return result;
}

// To the nearest, ties to even; NaN becomes the quiet NaN that c10::BFloat16 makes of it.
FLOWOPS_INLINE HalfBits narrow(c10::BFloat16, Vec<float> value) {
  WordBits words;
  std::memcpy(&words, &value.lanes, sizeof(words));
  const WordBits rounded = (words + 0x7fff + ((words >> 16) & 1)) >> 16;
  const WordBits quiet_nan = WordBits{} + 0x7fc0;
  return __builtin_convertvector((value != value).lanes ? quiet_nan : rounded, HalfBits);
}

#ifdef __F16C__
FLOWOPS_INLINE Vec<float> widen(c10::Half, HalfBits bits) {
#ifdef __AVX512F__
  return Vec<float>(_mm512_cvtph_ps((__m256i)bits));
#else
  return Vec<float>(_mm256_cvtph_ps((__m128i)bits));
#endif
}

FLOWOPS_INLINE HalfBits narrow(c10::Half, Vec<float> value) {
#ifdef __AVX512F__
  return (HalfBits)_mm512_cvtps_ph(value.lanes, _MM_FROUND_TO_NEAREST_INT);
#else
  return (HalfBits)_mm256_cvtps_ph(value.lanes, _MM_FROUND_TO_NEAREST_INT);
#endif
}
#endif

// The first `count` of them; the others are zero and are not written.
FLOWOPS_INLINE HalfBits load_bits(const void* source, int64_t count) {
#ifdef __AVX512BW__
  return (HalfBits)_mm256_maskz_loadu_epi16((1u << count) - 1, source);
#else
  HalfBits bits{};
  std::memcpy(&bits, source, count * 2);
  return bits;
#endif
}

FLOWOPS_INLINE void store_bits(void* target, HalfBits bits, int64_t count) {
#ifdef __AVX512BW__
  _mm256_mask_storeu_epi16(target, (1u << count) - 1, (__m256i)bits);
#else
  std::memcpy(target, &bits, count * 2);
#endif
}

// A vector of lanes from the storage type, whether or not the machine converts it.
template <typename T, typename scalar_t>
FLOWOPS_INLINE Vec<T> load_lanes(const scalar_t* source) {
  if constexpr (std::is_same_v<T, scalar_t>) {
    return Vec<T>::load(source);
  } else if constexpr (kVectorConversion<scalar_t, T>) {
    HalfBits bits;
    std::memcpy(&bits, source, sizeof(bits));
    return widen(scalar_t(), bits);
  } else {
    T lanes[Vec<T>::kLanes];
    for (int i = 0; i < Vec<T>::kLanes; ++i) lanes[i] = static_cast<T>(source[i]);
    return Vec<T>::load(lanes);
  }
}

template <typename T, typename scalar_t>
FLOWOPS_INLINE void store_lanes(scalar_t* target, Vec<T> value) {
  if constexpr (std::is_same_v<T, scalar_t>) {
    value.store(target);
  } else if constexpr (kVectorConversion<scalar_t, T>) {
    const HalfBits bits = narrow(scalar_t(), value);
    std::memcpy(target, &bits, sizeof(bits));
  } else {
    T lanes[Vec<T>::kLanes];
    value.store(lanes);
    for (int i = 0; i < Vec<T>::kLanes; ++i) target[i] = static_cast<scalar_t>(lanes[i]);
  }
}

// The first `count` lanes, the others zero.
template <typename T, typename scalar_t>
FLOWOPS_INLINE Vec<T> load_lanes(const scalar_t* source, int64_t count) {
  if constexpr (std::is_same_v<T, scalar_t>) {
    return Vec<T>::load(source, count);
  } else if constexpr (kVectorConversion<scalar_t, T>) {
    return widen(scalar_t(), load_bits(source, count));
  } else {
    T lanes[Vec<T>::kLanes] = {};
    for (int64_t i = 0; i < count; ++i) lanes[i] = static_cast<T>(source[i]);
    return Vec<T>::load(lanes);
  }
}

template <typename T, typename scalar_t>
FLOWOPS_INLINE void store_lanes(scalar_t* target, Vec<T> value, int64_t count) {
  if constexpr (std::is_same_v<T, scalar_t>) {
    value.store(target, count);
  } else if constexpr (kVectorConversion<scalar_t, T>) {
    store_bits(target, narrow(scalar_t(), value), count);
  } else {
    T lanes[Vec<T>::kLanes];
    value.store(lanes);
    for (int64_t i = 0; i < count; ++i) target[i] = static_cast<scalar_t>(lanes[i]);
  }
}

template <typename scalar_t, typename opmath_t>
void load_row(const scalar_t* source, opmath_t* target, int64_t size) {
  constexpr int kLanes = Vec<opmath_t>::kLanes;
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) load_lanes<opmath_t>(source + i).store(target + i);
  for (; i < size; ++i) target[i] = static_cast<opmath_t>(source[i]);
}

template <typename scalar_t, typename opmath_t>
void store_row(const opmath_t* source, scalar_t* target, int64_t size) {
  constexpr int kLanes = Vec<opmath_t>::kLanes;
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) store_lanes(target + i, Vec<opmath_t>::load(source + i));
  for (; i < size; ++i) target[i] = static_cast<scalar_t>(source[i]);
}

// Rows whose type stays, whatever it is.
template <typename T>
void load_row(const T* source, T* target, int64_t size) {
  constexpr int64_t kBlock = sizeof(HalfBits) / sizeof(T), kWord = sizeof(int64_t) / sizeof(T);
  int64_t i = 0;
  for (; i + kBlock <= size; i += kBlock) std::memcpy(target + i, source + i, sizeof(HalfBits));
  for (; i + kWord <= size; i += kWord) std::memcpy(target + i, source + i, sizeof(int64_t));
  for (; i < size; ++i) target[i] = source[i];
}

template <typename T>
void store_row(const T* source, T* target, int64_t size) {
  load_row(source, target, size);
}

}  // namespace flowops
