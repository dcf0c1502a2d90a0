"""The lengths of answers in steps and tokens, counted on the small model's answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.errors import SteerError


@dataclass(frozen=True)
class AnswerShape:
    """Expected lengths of prompts, steps and answers.

    prompt_tokens, step_tokens: mean tokens of a prompt and of a step.
    ends: for step 0, 1, ...: chance that an answer which reaches the step ends with it; the last
        chance is 1.
    """

    prompt_tokens: float
    step_tokens: float
    ends: tuple[float, ...]

    def __post_init__(self) -> None:
        numbers = self.prompt_tokens, self.step_tokens
        if not all(0 < n < 1e12 for n in numbers) or not all(0 <= e <= 1 for e in self.ends):
            raise SteerError("an answer's shape needs lengths above 0 and chances in [0, 1]")
        if not self.ends or self.ends[-1] != 1:
            raise SteerError("an answer's shape needs chances that end in 1")

    @property
    def tokens(self) -> float:
        """Expected tokens of a prompt and its answer."""
        steps, reached = 0.0, 1.0
        for end in self.ends:
            steps, reached = steps + reached, reached * (1 - end)
        return self.prompt_tokens + steps * self.step_tokens

    @classmethod
    def of(cls, prompts: Sequence[int], answers: Sequence[Sequence[int]]) -> AnswerShape:
        """Count a shape from prompt lengths and, for each answer, the tokens of each step."""
        steps = [len(answer) for answer in answers]
        reached = [sum(n > k for n in steps) for k in range(max(steps))]
        ended = [sum(n == k + 1 for n in steps) for k in range(max(steps))]
        return cls(
            sum(prompts) / len(prompts),
            sum(map(sum, answers)) / sum(steps),
            tuple(e / r for e, r in zip(ended, reached, strict=True)),
        )

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "step_tokens": self.step_tokens,
            "ends": list(self.ends),
        }

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> AnswerShape:
        """Inverse of :meth:`to_json`."""
        ends = tuple(map(float, raw["ends"]))
        return cls(float(raw["prompt_tokens"]), float(raw["step_tokens"]), ends)
