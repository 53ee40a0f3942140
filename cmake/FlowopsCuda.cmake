# The CUDA backend, for the architectures in CMAKE_CUDA_ARCHITECTURES.
if(NOT FLOWOPS_TORCH_CUDA)
  message(FATAL_ERROR "flowops: FLOWOPS_CUDA=ON needs a CUDA build of torch, got torch ${FLOWOPS_TORCH_VERSION} for CPU")
endif()
if(NOT CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 80-real 90-real 100-real 120)
endif()
set(CMAKE_CUDA_RUNTIME_LIBRARY Shared)
enable_language(CUDA)
string(REGEX MATCH "^[0-9]+" _flowops_toolkit_major "${CMAKE_CUDA_COMPILER_VERSION}")
if(NOT FLOWOPS_TORCH_CUDA MATCHES "^${_flowops_toolkit_major}\\.")
  message(FATAL_ERROR
    "flowops: nvcc is CUDA ${CMAKE_CUDA_COMPILER_VERSION} but torch was built with CUDA ${FLOWOPS_TORCH_CUDA}; "
    "name that toolkit's nvcc with -DCMAKE_CUDA_COMPILER=")
endif()

file(GLOB FLOWOPS_CUDA_SOURCES CONFIGURE_DEPENDS csrc/cuda/*.cu csrc/cuda/*.cpp)
flowops_add_backend(flowops_cuda ${FLOWOPS_CUDA_SOURCES})
target_include_directories(flowops_cuda SYSTEM PRIVATE ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
target_link_libraries(flowops_cuda PRIVATE
  ${FLOWOPS_TORCH_LIB}/libtorch_cuda.so ${FLOWOPS_TORCH_LIB}/libc10_cuda.so)
