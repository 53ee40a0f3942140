// Memory that begins where a vector may: a load or store across two cache lines costs two. Torch-free.
#pragma once

#include <cstddef>
#include <memory>
#include <new>
#include <vector>

#include "common/vec.h"

namespace flowops {

// Without values, unlike AlignedVector.
template <typename T>
T* allocate_aligned(size_t count) {
  return static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t(kVectorBytes)));
}

struct AlignedFree {
  void operator()(void* memory) const { ::operator delete(memory, std::align_val_t(kVectorBytes)); }
};

template <typename T>
using AlignedArray = std::unique_ptr<T[], AlignedFree>;

// Without values, too.
template <typename T>
AlignedArray<T> aligned_array(size_t count) {
  return AlignedArray<T>(allocate_aligned<T>(count));
}

template <typename T>
struct AlignedAllocator {
  using value_type = T;

  AlignedAllocator() = default;
  template <typename U>
  AlignedAllocator(const AlignedAllocator<U>&) {}

  T* allocate(size_t count) { return allocate_aligned<T>(count); }
  void deallocate(T* memory, size_t) { AlignedFree()(memory); }

  friend bool operator==(const AlignedAllocator&, const AlignedAllocator&) { return true; }
  friend bool operator!=(const AlignedAllocator&, const AlignedAllocator&) { return false; }
};

template <typename T>
using AlignedVector = std::vector<T, AlignedAllocator<T>>;

}  // namespace flowops
