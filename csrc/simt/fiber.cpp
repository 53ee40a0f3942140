#include "simt/fiber.h"

#include <sys/mman.h>

#include <stdexcept>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace flowops::simt {

namespace {

// makecontext passes no pointer, so the fiber that is being entered for the first time stands here.
Fiber* entering = nullptr;

void announce_switch([[maybe_unused]] void** save, [[maybe_unused]] const void* stack,
                     [[maybe_unused]] size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(save, stack, bytes);
#endif
}

void confirm_switch([[maybe_unused]] void* saved, [[maybe_unused]] const void** stack,
                    [[maybe_unused]] size_t* bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(saved, stack, bytes);
#endif
}

}  // namespace

void enter_fiber() {
  Fiber* self = entering;
  confirm_switch(nullptr, &self->owner_stack_, &self->owner_bytes_);
  self->entry_();
}

Fiber::Fiber(void (*entry)()) : entry_(entry) {
  void* memory = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::runtime_error("simt: no memory for a thread's stack");
  stack_ = static_cast<char*>(memory);
  // An overflowing stack must fault, not reach its neighbour.
  mprotect(stack_, 4096, PROT_NONE);
  getcontext(&context_);
  context_.uc_stack.ss_sp = stack_;
  context_.uc_stack.ss_size = kStackBytes;
  context_.uc_link = nullptr;
  makecontext(&context_, enter_fiber, 0);
}

Fiber::~Fiber() {
#if defined(__SANITIZE_ADDRESS__)
  // Frames left suspended here would otherwise poison whatever is mapped next.
  __asan_unpoison_memory_region(stack_, kStackBytes);
#endif
  munmap(stack_, kStackBytes);
}

void Fiber::resume() {
  entering = this;
  void* owner_fake_stack = nullptr;
  announce_switch(&owner_fake_stack, stack_, kStackBytes);
  swapcontext(&owner_, &context_);
  confirm_switch(owner_fake_stack, nullptr, nullptr);
}

void Fiber::suspend() {
  announce_switch(&fake_stack_, owner_stack_, owner_bytes_);
  swapcontext(&context_, &owner_);
  confirm_switch(fake_stack_, &owner_stack_, &owner_bytes_);
}

}  // namespace flowops::simt
