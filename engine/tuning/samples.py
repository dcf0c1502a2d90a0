"""Answers of the small model alone, token by token: the data of a calibration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from engine.conversation import Asked
from engine.engine import Engine
from engine.errors import SteerError
from engine.params import SamplingParams
from engine.request import Completion
from engine.routing.answer_shape import AnswerShape
from engine.routing.signals import Signals
from engine.routing.windows import Window

Tokens = tuple[Signals, ...]


@dataclass(frozen=True)
class Sample:
    """One answer of the small model: the signals of each token of each step."""

    prompt_tokens: int
    steps: tuple[Tokens, ...]
    text: str

    @classmethod
    def of(cls, completion: Completion) -> Sample:
        """A sample from a completion of the small model alone, with ``token_signals``."""
        signals, first = completion.token_signals or (), len(completion.prompt_token_ids)
        starts = [step.position - first for step in completion.steps]
        ends = [*starts[1:], len(signals)]
        steps = (tuple(s for s in signals[a:b] if s) for a, b in zip(starts, ends, strict=True))
        return cls(first, tuple(step for step in steps if step), completion.text)

    def seen(self, window: Window, step: int) -> Signals | None:
        """The signals that a decision at the boundary before a step would get from a window.

        None before the first step for the windows ``step`` and ``so-far``. A kept trial becomes the
        text, so a probe's tokens are those of the step.
        """
        if window.kind == "step":
            return window.summary(self.steps[step - 1]) if step else None
        if window.kind == "so-far":
            return window.summary([s for tokens in self.steps[:step] for s in tokens])
        if window.kind == "answer":
            return window.summary([s for tokens in self.steps for s in tokens])
        return window.summary(self.steps[step][: window.tokens or 1])


def doubt(tokens: Tokens) -> float:
    """The small model's own probability of drawing other tokens than these greedy ones."""
    return 1 - math.exp(sum(math.log(max(s.max_prob, 1e-30)) for s in tokens))


def observe(
    engine: Engine, prompts: Sequence[Asked], params: SamplingParams, progress: bool = False
) -> list[Sample]:
    """Let the small model answer alone. SteerError if no answer has a second step."""
    wanted = replace(params, token_signals=True)
    completions = engine.generate(prompts, wanted, "small", progress=progress)
    broken = sum(c.finish_reason == "error" for c in completions)
    if broken:
        raise SteerError(
            f"{broken} of {len(completions)} answers of the small model ended in an error "
            "(unusable logits)"
        )
    samples = [Sample.of(c) for c in completions]
    if all(len(sample.steps) < 2 for sample in samples):
        wanted_text = " or ".join(map(repr, engine.config.delimiters))
        raise SteerError(
            f"no boundary in any of {len(samples)} answers: no step ended in {wanted_text}; "
            "allow more tokens, or set the delimiters that these models write"
        )
    return samples


def answer_shape(samples: Sequence[Sample]) -> AnswerShape:
    """The shape of the samples' answers."""
    return AnswerShape.of(
        [s.prompt_tokens for s in samples], [list(map(len, s.steps)) for s in samples]
    )
