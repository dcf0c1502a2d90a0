"""The door: ``python -m bench.real_pair``."""

import sys

from bench.real_pair.command import main

if __name__ == "__main__":
    sys.exit(main())
