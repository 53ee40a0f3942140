"""Networks as flows: modules over :mod:`flowops.ops`."""
