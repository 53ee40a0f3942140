// math/invertible_conv1x1.h: elements of the LU factors, read from the stored square matrices.
#include "math/invertible_conv1x1.h"
#include "tests/expect.h"

int main() {
  using namespace flowops;
  using testing::expect_close;
  // Strict triangles count; 9 stands where nothing may be read.
  constexpr double kLower[] = {9, 9, 9, 0.5, 9, 9, -2, 3, 9};
  constexpr double kUpper[] = {9, 1.5, -1, 9, 9, 4, 9, 9, 9};
  constexpr double kLogS[] = {0.2, -0.4, 0.6}, kSign[] = {1, -1, 1}, kScale[] = {1, 2, 0.5};
  const double d[] = {std::exp(0.2), -std::exp(-0.4), std::exp(0.6)};
  const double l[3][3] = {{1, 0, 0}, {0.5, 1, 0}, {-2, 3, 1}};
  const double u[3][3] = {{d[0], 1.5, -1}, {0, d[1], 4}, {0, 0, d[2]}};
  for (int row = 0; row < 3; ++row) {
    for (int column = 0; column < 3; ++column) {
      const double diagonal = lu_diagonal(kSign[row], kLogS[row]);
      expect_close(lu_lower_factor(kLower, 3, row, column), l[row][column], 0, "unit lower factor");
      expect_close(lu_upper_factor(kUpper, 3, row, column, diagonal, kScale[column]),
                   u[row][column] * kScale[column], 1e-15, "scaled upper factor");
    }
  }
  return testing::exit_status();
}
