# Defines flowops::torch from the torch Python package of Python_EXECUTABLE (or of the python3 that is found).
#
# torch's own find_package(Torch) asks for a whole CUDA toolkit when torch has CUDA, even to build for the CPU.

if(TARGET flowops::torch)
  return()
endif()

find_package(Python REQUIRED COMPONENTS Interpreter)

set(_flowops_query "
import os, torch
from torch.utils import cpp_extension
root = os.path.dirname(torch.__file__)
print(torch.__version__.split('+')[0])
print(torch.version.cuda or '')
print(int(torch.compiled_with_cxx11_abi()))
print(os.path.join(root, 'lib'))
print(';'.join(cpp_extension.include_paths()))
")
execute_process(
  COMMAND "${Python_EXECUTABLE}" -c "${_flowops_query}"
  OUTPUT_VARIABLE _flowops_answer
  ERROR_VARIABLE _flowops_error
  RESULT_VARIABLE _flowops_result
  OUTPUT_STRIP_TRAILING_WHITESPACE)
if(_flowops_result)
  message(FATAL_ERROR
    "flowops: ${Python_EXECUTABLE} cannot import torch; install torch there (pip install torch), "
    "or name another interpreter with -DPython_EXECUTABLE=\n${_flowops_error}")
endif()

string(REPLACE ";" "|" _flowops_answer "${_flowops_answer}")
string(REPLACE "\n" ";" _flowops_answer "${_flowops_answer}")
list(GET _flowops_answer 0 FLOWOPS_TORCH_VERSION)
list(GET _flowops_answer 1 FLOWOPS_TORCH_CUDA)
list(GET _flowops_answer 2 _flowops_cxx11_abi)
list(GET _flowops_answer 3 FLOWOPS_TORCH_LIB)
list(GET _flowops_answer 4 _flowops_includes)
string(REPLACE "|" ";" _flowops_includes "${_flowops_includes}")

add_library(flowops::torch INTERFACE IMPORTED)
set_target_properties(flowops::torch PROPERTIES
  INTERFACE_SYSTEM_INCLUDE_DIRECTORIES "${_flowops_includes}"
  INTERFACE_INCLUDE_DIRECTORIES "${_flowops_includes}"
  INTERFACE_COMPILE_DEFINITIONS "_GLIBCXX_USE_CXX11_ABI=${_flowops_cxx11_abi}"
  INTERFACE_COMPILE_FEATURES cxx_std_20
  INTERFACE_LINK_DIRECTORIES "${FLOWOPS_TORCH_LIB}"
  INTERFACE_LINK_LIBRARIES
    "${FLOWOPS_TORCH_LIB}/libtorch.so;${FLOWOPS_TORCH_LIB}/libtorch_cpu.so;${FLOWOPS_TORCH_LIB}/libc10.so")
