"""The process of one engine: ``python -m bench.rivals.worker NAME TASK``.

TASK is a ``Task`` as JSON. Writes a JSON object a line: first {"version", "weights"}, or only
{"missing"}; then, for each request {"prompts", "tokens"} on standard input, {"seconds", "ids"}.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib import metadata

from bench.rivals.runtimes import RUNTIMES, MissingError, Task, distribution


def main(name: str, task: str) -> None:
    """Serve until standard input ends."""
    # What the engines print goes to standard error: the real output is for answers alone.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(**answer: object) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    kind = RUNTIMES[name]
    try:
        runtime = kind(Task(**json.loads(task)))
    except MissingError as error:
        say(missing=str(error))
        return
    package = distribution(kind.module, kind.package)
    say(version=metadata.version(package), weights=runtime.weights)
    for line in sys.stdin:
        request = json.loads(line)
        begin = time.perf_counter()
        ids = runtime.generate(request["prompts"], request["tokens"])
        say(seconds=time.perf_counter() - begin, ids=ids)


if __name__ == "__main__":
    main(*sys.argv[1:])
