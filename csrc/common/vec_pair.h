// Two vectors as one: in a long chain of dependent operations one works while the other waits. Torch-free.
#pragma once

#include "common/vec_special.h"

namespace flowops {

template <typename V>
struct Pair {
  static constexpr int kLanes = 2 * V::kLanes;

  struct Mask {
    typename V::Mask first, second;
  };

  V first, second;

  Pair() = default;
  template <typename T>
  Pair(T value) : first(value), second(value) {}
  Pair(V first, V second) : first(first), second(second) {}

  template <typename T>
  static Pair load(const T* source) {
    return {V::load(source), V::load(source + V::kLanes)};
  }
  template <typename T>
  void store(T* target) const {
    first.store(target), second.store(target + V::kLanes);
  }

  // The first `count` lanes; the others read as zero and are not written.
  template <typename T>
  static FLOWOPS_INLINE Pair load(const T* source, int64_t count) {
    if (count >= kLanes) return load(source);
    const int64_t rest = count - V::kLanes;
    return rest > 0 ? Pair(V::load(source), V::load(source + V::kLanes, rest))
                    : Pair(V::load(source, count), V(T(0)));
  }
  template <typename T>
  FLOWOPS_INLINE void store(T* target, int64_t count) const {
    if (count >= kLanes) return store(target);
    const int64_t rest = count - V::kLanes;
    if (rest <= 0) return first.store(target, count);
    first.store(target), second.store(target + V::kLanes, rest);
  }

  Pair& operator+=(Pair other) { return *this = *this + other; }
  Pair& operator*=(Pair other) { return *this = *this * other; }
  friend Pair operator+(Pair a, Pair b) { return {a.first + b.first, a.second + b.second}; }
  friend Pair operator-(Pair a, Pair b) { return {a.first - b.first, a.second - b.second}; }
  friend Pair operator*(Pair a, Pair b) { return {a.first * b.first, a.second * b.second}; }
  friend Pair operator/(Pair a, Pair b) { return {a.first / b.first, a.second / b.second}; }
  friend Pair operator-(Pair a) { return {-a.first, -a.second}; }
  friend Mask operator<(Pair a, Pair b) { return {a.first < b.first, a.second < b.second}; }
  friend Mask operator>(Pair a, Pair b) { return {a.first > b.first, a.second > b.second}; }
  friend Mask operator>=(Pair a, Pair b) { return {a.first >= b.first, a.second >= b.second}; }
  friend Mask operator!=(Pair a, Pair b) { return {a.first != b.first, a.second != b.second}; }
};

template <typename V>
FLOWOPS_INLINE Pair<V> select(typename Pair<V>::Mask condition, Pair<V> yes, Pair<V> no) {
  return {select(condition.first, yes.first, no.first), select(condition.second, yes.second, no.second)};
}

template <typename V>
FLOWOPS_INLINE Pair<V> quotient(Pair<V> a, Pair<V> b) {
  return {quotient(a.first, b.first), quotient(a.second, b.second)};
}

template <typename V>
FLOWOPS_INLINE Pair<V> abs(Pair<V> x) {
  return {abs(x.first), abs(x.second)};
}

template <typename V>
FLOWOPS_INLINE Pair<V> exp(Pair<V> x) {
  return {exp(x.first), exp(x.second)};
}

template <typename V>
FLOWOPS_INLINE Pair<V> log(Pair<V> x) {
  return {log(x.first), log(x.second)};
}

template <typename V>
FLOWOPS_INLINE Pair<V> log1p(Pair<V> x) {
  return {log1p(x.first), log1p(x.second)};
}

template <typename V>
FLOWOPS_INLINE Pair<V> sqrt(Pair<V> x) {
  return {sqrt(x.first), sqrt(x.second)};
}

}  // namespace flowops
