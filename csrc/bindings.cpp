// flowops._C: facts about the build, and typed calls of the ops. They go through the dispatcher as those of
// torch.ops do, without its boxing of arguments.
#include <pybind11/stl.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>

#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "ops/actnorm.h"
#include "ops/affine_coupling.h"
#include "ops/dequantize_logit.h"
#include "ops/gaussian_log_prob.h"
#include "ops/gaussian_rsample.h"
#include "ops/invertible_conv1x1.h"
#include "ops/invertible_conv1x1_prepare.h"
#include "ops/linear_attention.h"
#include "ops/logistic_mixture_log_prob.h"
#include "ops/mlp.h"
#include "ops/rational_quadratic_spline.h"
#include "ops/spectral_norm.h"

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

// What Python passes where an op takes a view of a list.
template <typename Argument>
struct Passed {
  using type = Argument;
};
template <typename Element>
struct Passed<at::ArrayRef<Element>> {
  using type = const std::vector<Element>&;
};

template <typename Result, typename... Arguments>
void define_op(py::module& m, const char* name, Result (*op)(Arguments...)) {
  m.def(name, torch::wrap_pybind_function_no_gil(
                  [op](typename Passed<Arguments>::type... arguments) { return op(arguments...); }));
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "flowops: schemas, autograd and autocast rules, and what this build holds.";
  m.def("build_info", &build_info, "Versions of flowops, of the torch built against, and of the compiler.");
  m.def("capabilities", &capabilities,
        "Instruction sets with CPU kernels, the CUDA version (None without CUDA kernels) and architectures.");
  define_op(m, "actnorm", &flowops::actnorm);
  define_op(m, "affine_coupling", &flowops::affine_coupling);
  define_op(m, "dequantize_logit", &flowops::dequantize_logit);
  define_op(m, "gaussian_log_prob", &flowops::gaussian_log_prob);
  define_op(m, "gaussian_rsample", &flowops::gaussian_rsample);
  define_op(m, "invertible_conv1x1", &flowops::invertible_conv1x1);
  define_op(m, "invertible_conv1x1_full", &flowops::invertible_conv1x1_full);
  define_op(m, "invertible_conv1x1_lu", &flowops::invertible_conv1x1_lu);
  define_op(m, "linear_attention", &flowops::linear_attention);
  define_op(m, "logistic_mixture_log_prob", &flowops::logistic_mixture_log_prob);
  define_op(m, "mlp", &flowops::mlp);
  define_op(m, "rational_quadratic_spline", &flowops::rational_quadratic_spline);
  define_op(m, "spectral_norm", &flowops::spectral_norm);
}
