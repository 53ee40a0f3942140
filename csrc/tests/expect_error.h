// What a call that must fail says.
#pragma once

#include <c10/util/Exception.h>

#include <string>

#include "tests/expect.h"

namespace flowops::testing {

// Of a ValueError that begins with `beginning`: the op, and the argument.
template <typename Call>
void expect_value_error(const std::string& beginning, const char* what, const Call& call,
                        const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  std::string message;
  try {
    call();
  } catch (const c10::ValueError& error) {
    message = error.what_without_backtrace();
  }
  expect(message.rfind(beginning, 0) == 0, what, file, line);
}

}  // namespace flowops::testing
