// A vector of lanes over the GCC/Clang vector extensions, with the vocabulary of math/scalar.h, so that
// csrc/math is written once. The width follows the instruction set a file is compiled for. Torch-free.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>
#if defined(__AVX512F__) || defined(__F16C__)
#include <immintrin.h>
#endif

#include "math/scalar.h"

namespace flowops {

#if defined(__AVX512F__)
inline constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
inline constexpr int kVectorBytes = 32;
#else
inline constexpr int kVectorBytes = 16;
#endif

template <typename T>
struct FloatTraits;
template <>
struct FloatTraits<float> {
  using Int = int32_t;
  typedef float Native __attribute__((vector_size(kVectorBytes)));
  typedef int32_t Bits __attribute__((vector_size(kVectorBytes)));
  static constexpr int kMantissaBits = 23, kBias = 127, kLogTerms = 5;
  static constexpr float kExpLow = -104.f, kExpHigh = 89.f, kRound = 12582912.f;  // 1.5 * 2^23
  static constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
};
template <>
struct FloatTraits<double> {
  using Int = int64_t;
  typedef double Native __attribute__((vector_size(kVectorBytes)));
  typedef int64_t Bits __attribute__((vector_size(kVectorBytes)));
  static constexpr int kMantissaBits = 52, kBias = 1023, kExpDegree = 13, kLogTerms = 11;
  static constexpr double kExpLow = -746., kExpHigh = 710., kRound = 6755399441055744.;  // 1.5 * 2^52
  static constexpr double kLn2High = 6.93145751953125e-1, kLn2Low = 1.42860682030941723212e-6;
};

template <typename T>
struct Vec {
  using Int = typename FloatTraits<T>::Int;
  using Native = typename FloatTraits<T>::Native;
  using Bits = typename FloatTraits<T>::Bits;
  static constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

  struct Mask {
    Bits lanes;
    friend Mask operator&(Mask a, Mask b) { return {a.lanes & b.lanes}; }
  };

  Native lanes;

  Vec() = default;
  Vec(T value) : lanes(value - Native{}) {}
  explicit Vec(Native native) : lanes(native) {}

  static Vec load(const T* source) {
    Vec result;
    std::memcpy(&result.lanes, source, sizeof(Native));
    return result;
  }
  void store(T* target) const { std::memcpy(target, &lanes, sizeof(Native)); }

  // The first `count` lanes; the others read as zero and are not written.
  static FLOWOPS_INLINE Vec load(const T* source, int64_t count) {
    Vec result(Native{});
#ifdef __AVX512F__
    const uint32_t lanes = (1u << count) - 1;
    if constexpr (sizeof(T) == 4) {
      result.lanes = _mm512_maskz_loadu_ps(lanes, source);
    } else {
      result.lanes = _mm512_maskz_loadu_pd(lanes, source);
    }
#else
    std::memcpy(&result.lanes, source, count * sizeof(T));
#endif
    return result;
  }
  FLOWOPS_INLINE void store(T* target, int64_t count) const {
#ifdef __AVX512F__
    const uint32_t mask = (1u << count) - 1;
    if constexpr (sizeof(T) == 4) {
      _mm512_mask_storeu_ps(target, mask, lanes);
    } else {
      _mm512_mask_storeu_pd(target, mask, lanes);
    }
#else
    std::memcpy(target, &lanes, count * sizeof(T));
#endif
  }

  static Mask first(int64_t count) {
    Bits index;
    for (int i = 0; i < kLanes; ++i) index[i] = i;
    return {index < (static_cast<Int>(count) - Bits{})};
  }

  // Pairwise: a chain of kLanes additions would wait for each one.
  FLOWOPS_INLINE T sum() const {
#ifdef __AVX512F__
    if constexpr (sizeof(T) == 4) {
      return _mm512_reduce_add_ps(lanes);
    } else {
      return _mm512_reduce_add_pd(lanes);
    }
#else
    T partial[kLanes];
    store(partial);
    for (int width = kLanes / 2; width > 0; width /= 2) {
      for (int i = 0; i < width; ++i) partial[i] += partial[i + width];
    }
    return partial[0];
#endif
  }

  Vec& operator+=(Vec other) { return *this = *this + other; }
  Vec& operator*=(Vec other) { return *this = *this * other; }
  friend Vec operator+(Vec a, Vec b) { return Vec(a.lanes + b.lanes); }
  friend Vec operator-(Vec a, Vec b) { return Vec(a.lanes - b.lanes); }
  friend Vec operator*(Vec a, Vec b) { return Vec(a.lanes * b.lanes); }
  friend Vec operator/(Vec a, Vec b) { return Vec(a.lanes / b.lanes); }
  friend Vec operator-(Vec a) { return Vec(-a.lanes); }
  friend Mask operator<(Vec a, Vec b) { return {a.lanes < b.lanes}; }
  friend Mask operator>(Vec a, Vec b) { return {a.lanes > b.lanes}; }
  friend Mask operator>=(Vec a, Vec b) { return {a.lanes >= b.lanes}; }
  friend Mask operator!=(Vec a, Vec b) { return {a.lanes != b.lanes}; }
};

template <typename T>
FLOWOPS_INLINE Vec<T> select(typename Vec<T>::Mask condition, Vec<T> yes, Vec<T> no) {
  return Vec<T>(condition.lanes ? yes.lanes : no.lanes);
}

template <typename T>
FLOWOPS_INLINE Vec<T> abs(Vec<T> x) {
  typename Vec<T>::Bits bits;
  std::memcpy(&bits, &x.lanes, sizeof(bits));
  bits &= std::numeric_limits<typename Vec<T>::Int>::max();
  std::memcpy(&x.lanes, &bits, sizeof(bits));
  return x;
}

template <typename T>
FLOWOPS_INLINE Vec<T> negative_abs(Vec<T> x) {
  typename Vec<T>::Bits bits;
  std::memcpy(&bits, &x.lanes, sizeof(bits));
  bits |= std::numeric_limits<typename Vec<T>::Int>::min();
  std::memcpy(&x.lanes, &bits, sizeof(bits));
  return x;
}

// Of a NaN and a number, the NaN as first argument wins.
template <typename T>
FLOWOPS_INLINE Vec<T> minimum(Vec<T> a, Vec<T> b) {
#ifdef __AVX512F__
  if constexpr (sizeof(T) == 4) {
    return Vec<T>(_mm512_min_ps(b.lanes, a.lanes));
  } else {
    return Vec<T>(_mm512_min_pd(b.lanes, a.lanes));
  }
#else
  return Vec<T>(b.lanes < a.lanes ? b.lanes : a.lanes);
#endif
}

// A NaN stays one.
template <typename T>
FLOWOPS_INLINE Vec<T> clamp(Vec<T> x, T low, T high) {
#ifdef __AVX512F__
  const Vec<T> lowest(low), highest(high);
  if constexpr (sizeof(T) == 4) {
    return Vec<T>(_mm512_min_ps(highest.lanes, _mm512_max_ps(lowest.lanes, x.lanes)));
  } else {
    return Vec<T>(_mm512_min_pd(highest.lanes, _mm512_max_pd(lowest.lanes, x.lanes)));
  }
#else
  x = select(x < Vec<T>(low), Vec<T>(low), x);
  return select(x > Vec<T>(high), Vec<T>(high), x);
#endif
}

// a / b for b from 2^-126 to 2^126: a reciprocal from an estimate of 14 bits and a Newton step beats the
// divider, and serves several quotients.
template <typename T>
FLOWOPS_INLINE Vec<T> quotient(Vec<T> a, Vec<T> b) {
#ifdef __AVX512F__
  if constexpr (sizeof(T) == 4) {
    const Vec<T> r(_mm512_maskz_rcp14_ps(-1, b.lanes));
    return a * (r + r * (Vec<T>(1) - b * r));
  }
#endif
  return a / b;
}

// p * 2^n, by two factors so that neither overflows before the product does.
template <typename T>
FLOWOPS_INLINE Vec<T> scale_by_power_of_two(Vec<T> p, Vec<T> n) {
#ifdef __AVX512F__
  if constexpr (sizeof(T) == 4) {
    return Vec<T>(_mm512_maskz_scalef_ps(-1, p.lanes, n.lanes));
  } else {
    return Vec<T>(_mm512_maskz_scalef_pd(-1, p.lanes, n.lanes));
  }
#else
  using Traits = FloatTraits<T>;
  using Bits = typename Vec<T>::Bits;
  const Bits exponent = __builtin_convertvector(n.lanes, Bits);
  const Bits half = exponent >> 1;
  const Bits first = (half + Traits::kBias) << Traits::kMantissaBits;
  const Bits second = (exponent - half + Traits::kBias) << Traits::kMantissaBits;
  Vec<T> a, b;
  std::memcpy(&a.lanes, &first, sizeof(first));
  std::memcpy(&b.lanes, &second, sizeof(second));
  return p * a * b;
#endif
}

// The integer next to y, and what is left.
template <typename T>
FLOWOPS_INLINE void split_integer(Vec<T> y, Vec<T>& integer, Vec<T>& rest) {
#ifdef __AVX512F__
  if constexpr (sizeof(T) == 4) {
    rest = Vec<T>(_mm512_reduce_ps(y.lanes, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    integer = y - rest;
    return;
  }
#endif
  integer = y + Vec<T>(FloatTraits<T>::kRound) - Vec<T>(FloatTraits<T>::kRound);
  rest = y - integer;
}

// 2^(x log2 e): the rounding of the product weighs as much as one more rounding of x would.
FLOWOPS_INLINE Vec<float> exp(Vec<float> x) {
  // Minimax for 2^r - 1 over r on |r| <= 1/2, so that exp(0) is 1; relative error 4e-9.
  constexpr float kCoefficients[] = {1.54697322e-4f, 1.34100008e-3f, 9.61803086e-3f,
                                     5.55029735e-2f, 2.40226507e-1f, 6.93147242e-1f};
#ifndef __AVX512F__  // which saturates by itself
  x = clamp(x, FloatTraits<float>::kExpLow, FloatTraits<float>::kExpHigh);
#endif
  Vec<float> n, r;
  split_integer(x * Vec<float>(1.44269504f), n, r);
  Vec<float> p(kCoefficients[0]);
  for (int k = 1; k < 6; ++k) p = p * r + Vec<float>(kCoefficients[k]);
  return scale_by_power_of_two(p * r + Vec<float>(1), n);
}

// Cody-Waite reduction to |r| <= ln(2)/2 and the Taylor polynomial; 0, inf and NaN as std::exp gives them.
FLOWOPS_INLINE Vec<double> exp(Vec<double> x) {
  using Traits = FloatTraits<double>;
  x = clamp(x, Traits::kExpLow, Traits::kExpHigh);
  Vec<double> n, rest;
  split_integer(x * Vec<double>(1.4426950408889634), n, rest);
  const Vec<double> r = x - n * Vec<double>(Traits::kLn2High) - n * Vec<double>(Traits::kLn2Low);
  double coefficient = 1;
  for (int k = 2; k <= Traits::kExpDegree; ++k) coefficient /= k;
  Vec<double> p(coefficient);
  for (int k = Traits::kExpDegree; k >= 1; --k) {
    coefficient *= k;
    p = p * r + Vec<double>(coefficient);
  }
  return scale_by_power_of_two(p, n);
}

// For positive normal numbers: x = 2^e m with m in [sqrt(1/2), sqrt(2)), log m = 2 atanh((m-1)/(m+1)).
template <typename T>
FLOWOPS_INLINE Vec<T> log(Vec<T> x) {
  using Traits = FloatTraits<T>;
  using Bits = typename Vec<T>::Bits;
  using Int = typename Vec<T>::Int;
  const T sqrt_half = T(0.70710678118654752);
  Int offset;
  std::memcpy(&offset, &sqrt_half, sizeof(T));
  Bits bits;
  std::memcpy(&bits, &x.lanes, sizeof(bits));
  const Bits exponent = (bits - offset) >> Traits::kMantissaBits;
  bits -= exponent << Traits::kMantissaBits;
  Vec<T> m;
  std::memcpy(&m.lanes, &bits, sizeof(bits));
  const Vec<T> f = quotient(m - Vec<T>(1), m + Vec<T>(1));
  const Vec<T> f2 = f * f;
  Vec<T> p(T(2) / T(2 * Traits::kLogTerms - 1));
  for (int k = Traits::kLogTerms - 1; k >= 1; --k) p = p * f2 + Vec<T>(T(2) / T(2 * k - 1));
  const Vec<T> e(__builtin_convertvector(exponent, typename Vec<T>::Native));
  return e * Vec<T>(Traits::kLn2High) + (e * Vec<T>(Traits::kLn2Low) + f * p);
}

// Lambert's continued fraction below 0.3, where (exp(2x) - 1) / (exp(2x) + 1) would cancel; 1 to rounding
// from 20 on.
template <typename T>
FLOWOPS_INLINE Vec<T> tanh(Vec<T> x) {
  const Vec<T> size = abs(x), y = x * x, e = exp(Vec<T>(2) * minimum(size, Vec<T>(20)));
  const auto small = size < Vec<T>(T(0.3));
  const Vec<T> over = e - Vec<T>(1);
  const Vec<T> p = x * (((y + Vec<T>(378)) * y + Vec<T>(17325)) * y + Vec<T>(135135));
  const Vec<T> q = ((Vec<T>(28) * y + Vec<T>(3150)) * y + Vec<T>(62370)) * y + Vec<T>(135135);
  return quotient(select(small, p, select(x < Vec<T>(0), -over, over)), select(small, q, e + Vec<T>(1)));
}

// One level of reduce_rows: a and b hold rows of kWidth lanes, and the result the same rows at half the
// width.
template <int kWidth, typename T, typename Op, size_t... kLane>
FLOWOPS_INLINE Vec<T> halve_rows(Vec<T> a, Vec<T> b, const Op& op, std::index_sequence<kLane...>) {
  constexpr int kHalf = kWidth / 2;
#ifdef __clang__
  const auto low = __builtin_shufflevector(a.lanes, b.lanes, (kLane / kHalf * kWidth + kLane % kHalf)...);
  const auto high =
      __builtin_shufflevector(a.lanes, b.lanes, (kLane / kHalf * kWidth + kLane % kHalf + kHalf)...);
#else
  using Bits = typename Vec<T>::Bits;
  constexpr Bits kLow = {(kLane / kHalf * kWidth + kLane % kHalf)...};
  const auto low = __builtin_shuffle(a.lanes, b.lanes, kLow);
  const auto high = __builtin_shuffle(a.lanes, b.lanes, kLow + kHalf);
#endif
  return op(Vec<T>(low), Vec<T>(high));
}

// Lane i of the result is `op` over the lanes of rows[i]: cheaper than kLanes sums apart.
template <typename T, typename Op, int kWidth = Vec<T>::kLanes>
FLOWOPS_INLINE Vec<T> reduce_rows(const Vec<T>* rows, const Op& op) {
  constexpr int kLanes = Vec<T>::kLanes;
  if constexpr (kWidth == 1) {
    return rows[0];
  } else {
    Vec<T> halved[kWidth / 2];
    for (int i = 0; i < kWidth / 2; ++i) {
      halved[i] = halve_rows<kWidth>(rows[2 * i], rows[2 * i + 1], op, std::make_index_sequence<kLanes>());
    }
    return reduce_rows<T, Op, kWidth / 2>(halved, op);
  }
}

}  // namespace flowops
