"""`python -m flowops`."""

import sys

from flowops.cli import main

if __name__ == "__main__":
    sys.exit(main())
