"""Functions and layers of other libraries, by their names and arguments, on flowops kernels.

Importing a module of this package imports none of the others, nor the library it stands for.
"""

from flowops.compat._accelerate import patch as patch
