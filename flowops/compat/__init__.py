"""Functions of other libraries, by their names and arguments, on flowops kernels."""
