"""The door: ``python -m bench.gpu_quick``."""

import signal
import sys
from typing import Any

from bench.gpu_quick.command import main


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _interrupt)  # a run ended by SIGTERM still shows a summary
    sys.exit(main())
