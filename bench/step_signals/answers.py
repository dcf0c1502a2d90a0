"""The small model's answers, with what both models think of each token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from bench.evaluate import TestSet
from engine import Completion, Engine, SamplingParams, SteerError
from engine.request import TokenLogprobs
from engine.routing.signals import Signals
from engine.tuning.samples import Sample

_READ = "verify:0"  # the small model's text; the large model reads each token and replaces none


@dataclass(frozen=True)
class Answer:
    """One greedy answer of the small model.

    completion: of the small model alone, with its signals.
    right: whether the checker takes it for right.
    read: for each token what the large model thinks of it: its log-probability, and the likeliest
        token with its own. None where the reading run wrote another text (numbers that round
        otherwise in a larger batch).
    """

    completion: Completion
    right: bool
    read: tuple[TokenLogprobs, ...] | None

    @property
    def steps(self) -> int:
        """Number of steps."""
        return len(self.completion.steps)

    @property
    def sample(self) -> Sample:
        """Its signals by step, as a calibration sees them."""
        return Sample.of(self.completion)

    def start(self, step: int) -> int:
        """Tokens of the answer before a step; all of them for the number of steps."""
        if step == self.steps:
            return len(self.completion.token_ids)
        return self.completion.steps[step].position - len(self.completion.prompt_token_ids)

    def text_before(self, step: int) -> str:
        """The text of the steps before a step."""
        return "".join(each.text for each in self.completion.steps[:step])

    def signals(self, step: int) -> list[Signals]:
        """The small model's signals of each token of a step."""
        own = (self.completion.token_signals or ())[self.start(step) : self.start(step + 1)]
        return [each for each in own if each is not None]

    def reading(self, step: int) -> tuple[TokenLogprobs, ...]:
        """The large model's reading of a step; empty if there is none."""
        return (self.read or ())[self.start(step) : self.start(step + 1)]


def observe_answers(
    engine: Engine, tests: TestSet, params: SamplingParams, progress: bool = False
) -> list[Answer]:
    """Let the small model answer, and the large one read the answers.

    SteerError if a model's logits are unusable.
    """
    asked = tests.prompts(engine)
    small = engine.generate(asked, replace(params, token_signals=True), "small", progress=progress)
    read = engine.generate(asked, replace(params, logprobs=1), _READ, progress=progress)
    broken = sum(done.finish_reason == "error" for done in (*small, *read))
    if broken:
        raise SteerError(f"{broken} answers ended in an error (unusable logits)")
    right = [tests.is_correct(p, c.text) for p, c in zip(tests.problems, small, strict=True)]
    return list(map(_answer, small, right, read))


def _answer(small: Completion, right: bool, read: Completion) -> Answer:
    same = small.token_ids == read.token_ids
    return Answer(small, right, read.logprobs if same else None)


def autocorrelation(values: Sequence[Sequence[float]]) -> float:
    """Correlation of neighbours within the same list, pooled over all lists; NaN if constant.

    Deviations are from the mean of all values. Lists that differ in their mean correlate too.
    """
    every = [value for own in values for value in own]
    mean = sum(every) / max(1, len(every))
    spread = sum((value - mean) ** 2 for value in every) / max(1, len(every))
    pairs = [(a - mean) * (b - mean) for own in values for a, b in pairwise(own)]
    return sum(pairs) / len(pairs) / spread if pairs and spread > 0 else float("nan")
