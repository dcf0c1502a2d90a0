"""Which requests can have log-probabilities of their prompts' tokens, and by which model."""

from __future__ import annotations

from engine.config import ROLES
from engine.errors import SteerError
from engine.execution.logprobs import PromptLog
from engine.params import SamplingParams
from engine.request import TokenLogprobs
from engine.routing.guessed import Speculate
from engine.routing.policies import Always
from engine.routing.policy import Policy
from engine.routing.speculation import Speculation


def check_scored(params: SamplingParams, policy: Policy, drafts: Speculation) -> None:
    """SteerError if a prompt's log-probabilities are wanted and no one model writes everything.

    Args:
        drafts: how the large model's tokens are guessed.
    """
    if params.prompt_logprobs is None:
        return
    model = _writer(policy)
    if model is None or (model == "large" and drafts.verifies):
        raise SteerError(
            "prompt_logprobs: the policy must be small or large, as one model must read the whole "
            f"prompt and write the whole answer; got {getattr(policy, 'name', policy)}",
            "prompt_logprobs",
        )
    if model == "large" and (params.max_large_share < 1 or params.max_flops is not None):
        raise SteerError(
            "prompt_logprobs: the large model must write the whole answer, so max_large_share must "
            "be 1 and max_flops None",
            "prompt_logprobs",
        )


def scored_model(params: SamplingParams, policy: Policy) -> int | None:
    """The model whose log-probabilities of the prompt a checked request wants, if any."""
    model = _writer(policy)
    return None if params.prompt_logprobs is None or model is None else ROLES.index(model)


def prompt_logs(params: SamplingParams, policy: Policy) -> list[PromptLog | None]:
    """The logs of a checked request's samples, which share what they know."""
    model, top = scored_model(params, policy), params.prompt_logprobs
    if model is None or top is None:
        return [None] * params.n
    entries: dict[int, TokenLogprobs] = {}
    return [PromptLog(model, top, entries) for _ in range(params.n)]


def _writer(policy: Policy) -> str | None:
    """The model that writes everything, if one does."""
    alone = policy.policy if isinstance(policy, Speculate) else policy
    return alone.model if isinstance(alone, Always) else None
