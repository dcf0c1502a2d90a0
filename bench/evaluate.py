"""Runs one policy over a set of problems and keeps what a table needs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from bench.stats import paired_difference, wilson
from bench.tasks import registry
from engine import Completion, Engine, EngineConfig, Policy, SamplingParams
from engine._core import MOST_DRAFTS
from engine.accounting.ledger import Usage
from engine.accounting.pricing import ACCOUNTINGS, bytes_moved, pair_flops
from engine.conversation import Asked, Conversation
from engine.routing.speculation import NAME, VERIFY


class HasPrompt(Protocol):
    """All that the engine needs of a problem."""

    @property
    def prompt(self) -> str:
        """The text given to the models."""
        ...


@dataclass(frozen=True)
class TestSet:
    """Problems, their checker, how long an answer may be, the template of a prompt, and the texts
    that end a step.
    """

    problems: Sequence[Any]
    is_correct: Callable[[Any, str], bool]
    max_tokens: int
    conversation: Conversation = field(default_factory=Conversation)
    delimiters: tuple[str, ...] = EngineConfig.delimiters

    __test__ = False  # not a test class

    def prompts(self, engine: Engine) -> list[Asked]:
        """The engine's input for each problem."""
        return self.conversation.prompts(engine, [p.prompt for p in self.problems])


def task_tests(
    split: str,
    count: int,
    seed: int = 0,
    mix: str = "mixed",
    style: str = "open",
    task: str = "arithmetic",
) -> TestSet:
    """Problems of the embedded tasks; no right answer is as long as the limit."""
    problems = registry.problems(task, split, count, seed, mix, style)
    tasks = [registry.EVERY[p.task] for p in problems]
    longest = max(each.max_tokens[style] for each in tasks)
    return TestSet(problems, registry.is_correct, longest, delimiters=tasks[0].delimiters)


@dataclass(frozen=True)
class Evaluation:
    """Results of one policy on a test set. ``correct`` is in the order of the problems."""

    policy: str
    correct: tuple[bool, ...]
    completions: tuple[Completion, ...]
    usage: Usage
    flops: dict[str, int]  # by accounting, both models
    moved: dict[str, int]  # bytes of weights and KV
    seconds: float

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return sum(self.correct) / len(self.correct)

    @property
    def large_step_share(self) -> float:
        """Share of all steps that the large model wrote."""
        steps = [s.model == "large" for c in self.completions for s in c.steps]
        return sum(steps) / max(1, len(steps))

    @property
    def large_tokens(self) -> int:
        """Tokens of all answers that the large model wrote."""
        return sum(s.large_tokens for c in self.completions for s in c.steps)

    @property
    def large_token_share(self) -> float:
        """Share of all tokens that the large model wrote."""
        return self.large_tokens / max(1, self.tokens)

    @property
    def usages(self) -> list[Usage]:
        """The counts of each answer."""
        return [c.usage for c in self.completions]

    @property
    def tokens(self) -> int:
        """Tokens of all answers."""
        return sum(len(c.token_ids) for c in self.completions)

    def ended(self, reason: str) -> int:
        """How many answers ended for this reason."""
        return sum(c.finish_reason == reason for c in self.completions)

    @property
    def cut_off(self) -> int:
        """How many answers were cut off, by the token limit or a deadline."""
        return self.ended("length") + self.ended("deadline")

    def row(self, baseline: Evaluation) -> dict[str, Any]:
        """The result row; FLOPs and differences relative to ``baseline``, the large model alone."""
        low, high = wilson(sum(self.correct), len(self.correct))
        difference = paired_difference(self.correct, baseline.correct)
        relative = {f"flops_{a}": self.flops[a] / baseline.flops[a] for a in ACCOUNTINGS}
        return {
            "policy": self.policy,
            "n": len(self.correct),
            "accuracy": self.accuracy,
            "ci_low": low,
            "ci_high": high,
            "minus_large": difference[0],
            "minus_large_low": difference[1],
            "minus_large_high": difference[2],
            "errors": self.ended("error"),
            "cut_off": self.cut_off,
            "large_step_share": self.large_step_share,
            "large_token_share": self.large_token_share,
            "recomputed_share": self.usage.recomputed_share,
            **relative,
            "seconds": round(self.seconds, 3),
            "tokens_per_second": round(self.tokens / self.seconds, 1),
            "tokens": self.tokens,
            "flops_absolute": self.flops,
            "bytes_moved": self.moved,
            "rows": self.usage.to_json()["rows"],
            **self._guessed(baseline),
        }

    def _guessed(self, baseline: Evaluation) -> dict[str, Any]:
        """What guessing did, if the policy guesses: it costs FLOPs and spares reads of weights."""
        counts = self.usage.speculated
        if not counts.passes:
            return {}
        return {
            "tokens_a_pass": counts.tokens_per_pass,
            "acceptance": counts.acceptance,
            "weights_read": self.moved["weights"] / baseline.moved["weights"],
            "speculated": counts.to_json(),
        }


def drawn_rows(policies: Sequence[str], max_sequences: int) -> int:
    """``max_drawn_rows`` of an engine for these policies: room for all guesses of all answers.

    So what is guessed does not depend on how many answers are written at once. 0, the engine's own
    choice, if none of the policies guesses.
    """
    guesses = any(word in name for name in policies for word in (NAME, VERIFY))
    return max_sequences * (MOST_DRAFTS + 1) if guesses else 0


def ticks_of(engine: Engine) -> list[int]:
    """Ticks of each lane so far, the small model's first."""
    ticks = engine.scheduler.counters()["ticks"]
    assert isinstance(ticks, list)
    return ticks


def evaluate(
    engine: Engine,
    policy: Policy,
    tests: TestSet,
    name: str | None = None,
    progress: bool = False,
    trace: Path | None = None,
    token_signals: bool = False,
    audit: str = "off",
    count_spared: bool = False,
) -> Evaluation:
    """Answer all problems at once, greedily, and check them.

    With ``count_spared`` costs are as if the engine's prefix cache had never had a hit.
    """
    asked = tests.prompts(engine)
    before = ticks_of(engine)
    started = time.perf_counter()
    completions = engine.generate(
        asked,
        SamplingParams(max_tokens=tests.max_tokens, token_signals=token_signals, audit=audit),
        policy,
        progress=progress,
        trace=trace,
    )
    seconds = time.perf_counter() - started
    if count_spared:
        completions = [replace(c, usage=c.usage.unspared()) for c in completions]
    after = ticks_of(engine)
    usage = sum((c.usage for c in completions), Usage())
    ticks = (after[0] - before[0], after[1] - before[1])
    return Evaluation(
        policy=name or policy.name,
        correct=tuple(
            tests.is_correct(p, c.text) for p, c in zip(tests.problems, completions, strict=True)
        ),
        completions=tuple(completions),
        usage=usage,
        flops={a: pair_flops(usage, engine.shapes, a) for a in ACCOUNTINGS},
        moved=bytes_moved(usage, ticks, engine.shapes, engine.dtype.itemsize),
        seconds=seconds,
    )
