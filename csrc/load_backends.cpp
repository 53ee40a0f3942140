// Part of libflowops for C++ users (CMakeLists.txt): when it is loaded, loads from its own folder the kernels
// that fit this machine, as flowops/_library.py does for Python.
#include <ATen/Version.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/util/Exception.h>
#include <dlfcn.h>

#include <filesystem>
#include <string>

namespace flowops {
namespace {

std::filesystem::path library_folder() {
  static const char here = 0;
  Dl_info info{};
  TORCH_CHECK(dladdr(&here, &info) != 0, "flowops: cannot find the folder of libflowops");
  return std::filesystem::path(info.dli_fname).parent_path();
}

void load(const std::filesystem::path& library) {
  TORCH_CHECK(dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL) != nullptr, "flowops: cannot load ", dlerror());
}

// Best first; torch's names on other architectures all mean the baseline.
std::filesystem::path cpu_library(const std::filesystem::path& folder) {
  const std::string capability = at::get_cpu_capability();
  const auto avx512 = folder / "libflowops_cpu_avx512.so", avx2 = folder / "libflowops_cpu_avx2.so";
  if (capability == "AVX512" && std::filesystem::exists(avx512)) return avx512;
  if ((capability == "AVX512" || capability == "AVX2") && std::filesystem::exists(avx2)) return avx2;
  return folder / "libflowops_cpu_default.so";
}

bool load_backends() {
  const auto folder = library_folder(), cuda = folder / "libflowops_cuda.so";
  load(cpu_library(folder));
  if (at::detail::getCUDAHooks().hasCUDA() && std::filesystem::exists(cuda)) load(cuda);
  return true;
}

[[maybe_unused]] const bool loaded = load_backends();

}  // namespace
}  // namespace flowops
