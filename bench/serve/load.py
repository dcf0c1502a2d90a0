"""What is asked: the requests of a load, each a function of the seed and its number.

So processes need not exchange requests: each makes its own, and a second run asks the same.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import Any

from bench.serve.laws import Lengths, arrivals
from engine.errors import SteerError
from engine.files import parse_json, read_text

END = "?\n\n"
_LONGEST_PAUSE = 0.2  # seconds of a slow reader between two reads


@dataclass(frozen=True)
class Asked:
    """One request.

    prompt: text, or a list of messages.
    vanish: the share of the expected answer after which the client closes; None: it stays.
    pause: seconds that the client waits before each further read; 0 reads at once.
    due: seconds from the beginning at which it is to be sent; None: as soon as there is room.
    """

    index: int
    prompt: str | list[dict[str, Any]]
    max_tokens: int
    vanish: float | None = None
    pause: float = 0.0
    due: float | None = None


@dataclass(frozen=True)
class Load:
    """All requests of a run.

    requests: how many; None: until ``seconds`` are over.
    at_once: of a closed loop, so many are open at any time; None: an open loop of ``rate``.
    warm_up: share of the requests, or of the seconds, at the beginning that is not counted.
    characters: of a prompt for each token, of the server's tokenizer; prompts are made of text.
    entries: prompts of a file, taken in turn instead of made ones.
    vanish, slow: shares of the clients.
    """

    requests: int | None
    seconds: float | None
    at_once: int | None
    rate: float | None = None
    law: str = "poisson"
    warm_up: float = 0.1
    prompt_tokens: Lengths = field(default_factory=lambda: Lengths("fixed", (128,)))
    output_tokens: Lengths = field(default_factory=lambda: Lengths("fixed", (64,)))
    characters: float = 1.0
    overhead: float = 0.0
    entries: tuple[Mapping[str, Any], ...] = ()
    vanish: float = 0.0
    slow: float = 0.0
    seed: int = 0

    @property
    def uncounted(self) -> int:
        """Requests of the warm-up, where requests are counted."""
        return 0 if self.requests is None else int(self.warm_up * self.requests)

    def request(self, index: int, due: float | None = None) -> Asked:
        """The request of this number."""
        source = random.Random(f"{self.seed} {index}")
        output = self.output_tokens.draw(source)
        prompt: str | list[dict[str, Any]]
        if self.entries:
            entry = self.entries[index % len(self.entries)]
            prompt = entry.get("messages") or entry["prompt"]
            output = entry.get("max_tokens", output)
        else:
            tokens = self.prompt_tokens.draw(source) - self.overhead
            prompt = sums(source, round(tokens * self.characters))
        vanish = source.random() if source.random() < self.vanish else None
        pause = source.uniform(0.25, 1) * _LONGEST_PAUSE if source.random() < self.slow else 0.0
        return Asked(index, prompt, output, vanish, pause, due)

    def share(self, worker: int, workers: int) -> Iterator[Asked]:
        """The requests of one of several workers, dealt in turn; without end if ``requests`` is
        None."""
        numbers = count() if self.requests is None else iter(range(self.requests))
        if self.rate is None:
            yield from (self.request(i) for i in islice(numbers, worker, None, workers))
            return
        due = zip(numbers, arrivals(self.law, self.rate, self.seed), strict=False)
        for index, at in islice(due, worker, None, workers):
            if self.seconds is not None and at >= self.seconds:
                return
            yield self.request(index, at)

    def places(self, worker: int, workers: int) -> int:
        """Requests that one of several workers may have open in a closed loop."""
        assert self.at_once is not None
        return self.at_once // workers + (worker < self.at_once % workers)


def sums(source: random.Random, length: int) -> str:
    """A prompt of ``length`` characters, at least 5: a long sum, which every tokenizer knows."""
    pieces: list[str] = []
    wanted = max(2, length - len(END))
    while sum(map(len, pieces)) < wanted:
        pieces.append(f"{source.randint(10, 99)}{source.choice('+-*')}")
    return "".join(pieces)[: wanted - 1] + str(source.randint(1, 9)) + END


def read_entries(path: Path, endpoint: str) -> tuple[Mapping[str, Any], ...]:
    """The lines of a file: {"prompt" or "messages", "max_tokens" if it is not drawn}.

    SteerError that names the line where it is anything else.
    """
    entries = []
    for number, line in enumerate(read_text(path, "file of prompts").splitlines(), 1):
        if line.strip():
            entries.append(_entry(f"{path}, line {number}", line, endpoint))
    if not entries:
        raise SteerError(f"{path}: holds no prompt")
    return tuple(entries)


def _entry(where: str, line: str, endpoint: str) -> Mapping[str, Any]:
    try:
        entry = parse_json(line)
    except ValueError as error:
        raise SteerError(f"{where}: not valid JSON: {error}") from None
    if not isinstance(entry, dict) or ("prompt" in entry) == ("messages" in entry):
        raise SteerError(f'{where}: expected an object with either "prompt" or "messages"')
    if "messages" in entry and endpoint == "completions":
        raise SteerError(f'{where}: "messages" goes with --endpoint chat')
    wanted: tuple[str, type] = ("messages", list) if "messages" in entry else ("prompt", str)
    if not isinstance(entry[wanted[0]], wanted[1]) or not entry[wanted[0]]:
        raise SteerError(f"{where}: {wanted[0]} must be a {wanted[1].__name__} that is not empty")
    most = entry.get("max_tokens", 1)
    if not isinstance(most, int) or isinstance(most, bool) or most < 1:
        raise SteerError(f"{where}: max_tokens must be 1 or more, got {json.dumps(most)}")
    return entry
