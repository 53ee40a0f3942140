// Makes a backend library importable as an empty Python module; loading it registers its kernels with the
// dispatcher.
#include <Python.h>

#define FLOWOPS_INIT_(name) PyInit_##name
#define FLOWOPS_INIT(name) FLOWOPS_INIT_(name)

PyMODINIT_FUNC FLOWOPS_INIT(TORCH_EXTENSION_NAME)(void) {
  static PyModuleDef definition{};
  definition.m_base = PyModuleDef_HEAD_INIT;
  definition.m_name = "flowops backend";
  return PyModule_Create(&definition);
}
