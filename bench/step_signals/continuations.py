"""Labels of steps without people: how the large model's answers end from before and after each.

From each place where a step of an answer begins, the large model alone goes on greedily to the end,
and the checker says whether the whole text is right. A step is *wrong* if the text from before it
ends right, and the one from after it does not. Where the text from before it does not end right,
the step cannot be judged: what was wrong came earlier, or the large model cannot do the problem.

As long as a continuation agrees with the small model's next step token by token, it is also the
continuation from after that step: the same greedy run. So only steps that differ cost another run.
The prefixes of one answer share their KV through the prefix cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from bench.evaluate import TestSet
from bench.step_signals.answers import Answer
from engine import Completion, Engine, SamplingParams, SteerError
from engine.accounting.ledger import Usage
from engine.progress import progress_bar


@dataclass
class Outcomes:
    """Whether an answer ends right if the large model takes over, and what finding out took.

    right: for each step, if it takes over before the step; last, the small model's own answer.
    runs: continuations that were run.
    usage: of these runs.
    """

    right: list[bool] = field(default_factory=list)
    runs: int = 0
    usage: Usage = field(default_factory=Usage)

    def wrong(self, step: int) -> bool | None:
        """Whether a step is wrong; None if it cannot be judged."""
        return not self.right[step + 1] if self.right[step] else None

    def whole(self, answer: Answer) -> bool:
        """Whether all of an answer's outcomes are known."""
        return len(self.right) == answer.steps + 1

    @property
    def first_wrong(self) -> int | None:
        """The first wrong step, if any step is wrong."""
        steps = range(len(self.right) - 1)
        return next((step for step in steps if self.wrong(step)), None)


def continue_answers(
    engine: Engine,
    tests: TestSet,
    answers: Sequence[Answer],
    outcomes: Sequence[Outcomes],
    params: SamplingParams,
    progress: bool = False,
) -> None:
    """Fill in the outcomes of each answer; all of them are continued at once.

    After an exception those of finished answers are whole. SteerError if the large model's logits
    are unusable.
    """
    running: dict[int, int] = {}  # answer by request

    def go_on(index: int) -> None:
        answer, step = answers[index], len(outcomes[index].right)
        if step == answer.steps:
            outcomes[index].right.append(answer.right)
            return
        written = answer.start(step)
        prompt = [*answer.completion.prompt_token_ids, *answer.completion.token_ids[:written]]
        rest = replace(params, max_tokens=params.max_tokens - written)
        running[engine.submit(prompt, rest, "large")] = index

    total = sum(answer.steps for answer in answers)
    with progress_bar(total, progress, "continuations", "step") as bar:
        for index in range(len(answers)):
            go_on(index)
        while running:
            for done in engine.step():
                index = running.pop(done.request_id)
                if done.finish_reason == "error":
                    raise SteerError("a continuation of the large model ended in an error")
                bar.update(_take(tests, index, answers[index], outcomes[index], done))
                go_on(index)


def _take(tests: TestSet, index: int, answer: Answer, outcomes: Outcomes, done: Completion) -> int:
    """Add the outcome of a continuation, for each step that it stands for; how many these are."""
    step = len(outcomes.right)
    text = answer.text_before(step) + done.text
    right = tests.is_correct(tests.problems[index], text)
    covered = _same_steps(answer, step, done)
    outcomes.right += [right] * covered
    outcomes.runs += 1
    outcomes.usage += done.usage
    return covered


def _same_steps(answer: Answer, step: int, done: Completion) -> int:
    """The steps before which the continuation is the same run: one more than it repeats whole."""
    first, tokens = answer.start(step), answer.completion.token_ids
    covered = 1
    while step + covered < answer.steps:
        end = answer.start(step + covered)
        if done.token_ids[: end - first] != tokens[first:end]:
            break
        covered += 1
    return covered
