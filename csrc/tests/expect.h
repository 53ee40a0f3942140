// Expectations of the C++ tests: what fails is printed with its line, and the test's exit status says so.
#pragma once

#include <cmath>
#include <cstdio>

namespace flowops::testing {

inline int failures = 0;

inline void expect(bool holds, const char* what, const char* file = __builtin_FILE(),
                   int line = __builtin_LINE()) {
  if (holds) return;
  ++failures;
  std::fprintf(stderr, "%s:%d: failed: %s\n", file, line, what);
}

// |got - wanted| <= tolerance max(1, |wanted|); equal infinities and two NaNs are close.
inline void expect_close(double got, double wanted, double tolerance, const char* what,
                         const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  const bool same = got == wanted || (std::isnan(got) && std::isnan(wanted));
  if (same || std::fabs(got - wanted) <= tolerance * std::fmax(1, std::fabs(wanted))) return;
  ++failures;
  std::fprintf(stderr, "%s:%d: failed: %s: got %.17g, wanted %.17g\n", file, line, what, got, wanted);
}

inline int exit_status() { return failures == 0 ? 0 : 1; }

}  // namespace flowops::testing
