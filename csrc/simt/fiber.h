// A flow of control with its own stack, run by the thread that owns it until it suspends itself.
#pragma once

#include <ucontext.h>

#include <cstddef>
#include <memory>

namespace flowops::simt {

class Fiber {
 public:
  // The stack size leaves room for the larger frames of a sanitized build.
  static constexpr size_t kStackBytes = 256 * 1024;

  explicit Fiber(void (*entry)());
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Called by the owner: runs the fiber until it suspends itself.
  void resume();
  // Called on the fiber: returns to the owner's resume().
  void suspend();

 private:
  friend void enter_fiber();

  void (*entry_)();
  char* stack_;
  ucontext_t context_{};
  ucontext_t owner_{};
  // AddressSanitizer's record of the two stacks; unused in other builds.
  void* fake_stack_ = nullptr;
  const void* owner_stack_ = nullptr;
  size_t owner_bytes_ = 0;
};

}  // namespace flowops::simt
