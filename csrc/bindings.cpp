// flowops._C: facts about the build. Tensors never cross pybind11; ops go through the dispatcher (csrc/ops).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <sstream>
#include <string>
#include <vector>

namespace {

namespace py = pybind11;

std::vector<std::string> words(const char* text) {
  std::istringstream stream(text);
  std::vector<std::string> result;
  for (std::string word; stream >> word;) {
    result.push_back(word);
  }
  return result;
}

std::optional<std::string> unless_empty(std::string text) {
  return text.empty() ? std::nullopt : std::optional(std::move(text));
}

py::dict build_info() {
  py::dict info;
  info["version"] = FLOWOPS_VERSION;
  info["torch"] = FLOWOPS_TORCH_VERSION;
#ifdef __clang__
  info["compiler"] = "clang " __clang_version__;
#else
  info["compiler"] = "gcc " __VERSION__;
#endif
  return info;
}

py::dict capabilities() {
  py::dict result;
  result["cpu"] = words(FLOWOPS_CPU_CAPABILITIES);
  result["cuda"] = unless_empty(FLOWOPS_CUDA_VERSION);
  result["cuda_architectures"] = words(FLOWOPS_CUDA_ARCHITECTURES);
  return result;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "flowops: schemas, autograd and autocast rules, and what this build holds.";
  m.def("build_info", &build_info, "Versions of flowops, of the torch built against, and of the compiler.");
  m.def("capabilities", &capabilities,
        "Instruction sets with CPU kernels, the CUDA version (None without CUDA kernels) and architectures.");
}
