"""Word problems as a chat with the pair: questions, prompts and who is right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bench.evaluate import TestSet
from bench.tasks import gym
from bench.tasks.gym import GymProblem
from engine.answers import final_answer
from engine.errors import SteerError
from engine.tokenizer import Tokenizer

SOURCE = f"{gym.PREFIX}gsm_symbolic"
SEED = 11
INSTRUCTION = "Separate steps by blank lines."  # a boundary is where a step ends
MAX_TOKENS = 192


def draw(tests: int, calibration: int) -> tuple[list[GymProblem], list[GymProblem]]:
    """So many test problems and as many others to calibrate on, the same for the same numbers.

    SteerError without the ``reasoning-gym`` package.
    """
    drawn = gym.read_problems(SOURCE, tests + calibration, SEED)
    return drawn[:tests], drawn[tests:]


def as_chat(problems: Sequence[GymProblem], tokenizer: Tokenizer) -> TestSet:
    """The problems with their prompts as the checkpoint's chat template writes them.

    SteerError if neither checkpoint brings a template.
    """
    template = tokenizer.chat_template
    if template is None:
        raise SteerError("the checkpoints bring no chat template: take a pair made for chats")

    def prompt(question: str) -> str:
        return template.render([{"role": "user", "content": f"{question}\n{INSTRUCTION}"}])

    asked = [replace(problem, prompt=prompt(problem.prompt)) for problem in problems]
    return TestSet(asked, is_right, MAX_TOKENS)


def is_right(problem: GymProblem, text: str) -> bool:
    """Whether reasoning-gym gives full marks for the text's final answer.

    Its scorer of these problems takes the first number that it sees, so it is shown the final
    answer alone, without separators of thousands, which it does not read.
    """
    given = final_answer(text).replace(",", "")
    return float(problem.dataset.score_answer(given, problem.entry)) >= 1
