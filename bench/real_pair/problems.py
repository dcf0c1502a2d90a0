"""Word problems as chats with the pair."""

from __future__ import annotations

from collections.abc import Sequence

from bench.evaluate import TestSet
from bench.tasks import gym
from bench.tasks.gym import GymProblem
from engine.conversation import Conversation

SOURCE = f"{gym.PREFIX}gsm_symbolic"
SEED = 11
INSTRUCTION = "Separate steps by blank lines."  # a boundary is where a step ends
MAX_TOKENS = 320


def draw(
    tests: int, calibration: int, seed: int = SEED
) -> tuple[list[GymProblem], list[GymProblem]]:
    """Test problems and other ones to calibrate on, the same for the same three numbers.

    SteerError without the ``reasoning-gym`` package.
    """
    drawn = gym.read_problems(SOURCE, tests + calibration, seed)
    return drawn[:tests], drawn[tests:]


def as_chat(problems: Sequence[GymProblem]) -> TestSet:
    """The problems, each a user's message that the checkpoint's chat template writes."""
    conversation = Conversation(chat=True, instruction=INSTRUCTION)
    return TestSet(problems, gym.is_correct, MAX_TOKENS, conversation)
