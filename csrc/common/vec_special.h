// math/special.h for vectors. Torch-free.
#pragma once

#include <limits>

#include "common/vec.h"
#include "math/special.h"

namespace flowops {

template <typename T>
FLOWOPS_INLINE Vec<T> sqrt(Vec<T> x) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    return Vec<T>(_mm512_maskz_sqrt_ps(-1, x.lanes));
  } else {
    return Vec<T>(_mm512_maskz_sqrt_pd(-1, x.lanes));
  }
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == 4) {
    return Vec<T>(_mm256_sqrt_ps(x.lanes));
  } else {
    return Vec<T>(_mm256_sqrt_pd(x.lanes));
  }
#else
  for (int i = 0; i < Vec<T>::kLanes; ++i) x.lanes[i] = sqrt(x.lanes[i]);
  return x;
#endif
}

// As std::log for any number: subnormal ones too, -inf for 0, NaN below.
template <typename T>
FLOWOPS_INLINE Vec<T> log_any(Vec<T> x) {
  using Limits = std::numeric_limits<T>;
  const Vec<T> zero(0), infinity(Limits::infinity());
  const auto small = x < Vec<T>(Limits::min());
  const Vec<T> shift(T(1) / Limits::epsilon());
  const Vec<T> log_shift(T(FloatTraits<T>::kMantissaBits * 0.693147180559945309417));
  const Vec<T> finite = log(select(small, x * shift, x)) - select(small, log_shift, zero);
  const Vec<T> edge = select(x > zero, infinity, select(x != zero, Vec<T>(Limits::quiet_NaN()), -infinity));
  return select((x > zero) & (infinity > x), finite, edge);
}

// log(1 + x) for x in [0, 1], by 2 atanh(x / (2 + x)).
template <typename T>
FLOWOPS_INLINE Vec<T> log1p(Vec<T> x) {
  constexpr int kTerms = sizeof(T) == 4 ? 8 : 17;
  const Vec<T> f = quotient(x, Vec<T>(2) + x), f2 = f * f;
  Vec<T> p(T(2) / T(2 * kTerms - 1));
  for (int k = kTerms - 1; k >= 1; --k) p = p * f2 + Vec<T>(T(2) / T(2 * k - 1));
  return f * p;
}

// Folded to |t| <= tan(pi / 8) by atan(x) = pi / 4 + atan((x - 1) / (x + 1)) = pi / 2 - atan(1 / x), x > 0.
template <typename T>
FLOWOPS_INLINE Vec<T> atan(Vec<T> x) {
  constexpr int kTerms = sizeof(T) == 4 ? 9 : 20;
  constexpr double kTan1 = 0.41421356237309504880, kTan3 = 2.4142135623730950488,
                   kPi = 3.14159265358979323846;
  const Vec<T> size = abs(x), zero(0), one(1);
  const auto middle = size > Vec<T>(T(kTan1)), far = size > Vec<T>(T(kTan3));
  const Vec<T> over = select(far, -one, select(middle, size - one, size));
  const Vec<T> under = select(far, size, select(middle, size + one, one));
  const Vec<T> base = select(far, Vec<T>(T(kPi / 2)), select(middle, Vec<T>(T(kPi / 4)), zero));
  const Vec<T> t = over / under, t2 = t * t;
  Vec<T> p(T((kTerms % 2 ? 1.0 : -1.0) / (2 * kTerms - 1)));
  for (int k = kTerms - 1; k >= 1; --k) p = p * t2 + Vec<T>(T((k % 2 ? 1.0 : -1.0) / (2 * k - 1)));
  const Vec<T> result = base + t * p;
  return select(x < zero, -result, result);
}

}  // namespace flowops
