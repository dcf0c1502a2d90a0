"""The door: ``python -m bench.gpu_quick``."""

import sys

from bench.gpu_quick.command import main

if __name__ == "__main__":
    sys.exit(main())
