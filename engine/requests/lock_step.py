"""Requests that wait at a boundary for the others of their batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engine import _core
from engine.errors import SteerError
from engine.requests.request_state import RequestState
from engine.routing.policy import Boundary
from engine.routing.together import Answer, Rewrite, Together

Meeting = tuple[Together, list[Boundary]]  # a policy and the boundaries that it decides together


class LockStep:
    """The boundaries that are held until their policy can decide about all of them."""

    def __init__(self) -> None:
        self._held: dict[int, Boundary] = {}

    def hold(self, boundary: Boundary) -> None:
        """Hold the boundary at which a request waits."""
        self._held[boundary.request] = boundary

    def release(self, request: int) -> None:
        """Hold a request's boundary no longer."""
        self._held.pop(request, None)

    def due(
        self, core: _core.Scheduler, live: Mapping[int, RequestState], all_wait: bool = True
    ) -> Meeting | None:
        """A batch that is to be decided now, if there is one.

        What has ended, or was taken back meanwhile, is let go: it keeps no other waiting.

        Args:
            all_wait: whether all requests of the batch must wait; False where nothing else moves.
        """
        for request in list(self._held):
            if request not in live or not core.view(request).awaits_route:
                self.release(request)
        policies = {id(live[request].policy): live[request].policy for request in self._held}
        for policy in policies.values():
            assert isinstance(policy, Together)
            members = [r for r, each in live.items() if each.policy is policy and not each.given_up]
            waiting = [self._held[request] for request in members if request in self._held]
            if waiting and not (all_wait and len(waiting) < len(members)):
                return policy, waiting
        return None


def ask(policy: Together, boundaries: Sequence[Boundary]) -> Sequence[Answer]:
    """The answers of a policy to the boundaries of a batch. SteerError if they lead nowhere."""
    answers = policy.decide_together(boundaries)
    whole = len(answers) == len(boundaries) and any(answer is not None for answer in answers)
    if not whole or not all(isinstance(answer, Answer | None) for answer in answers):
        raise SteerError(
            f"policy {policy.name} must answer each of {len(boundaries)} boundaries with a "
            f"Decision, a Rewrite or None, and not all with None; got {answers!r}"
        )
    for boundary, answer in zip(boundaries, answers, strict=True):
        if isinstance(answer, Rewrite) and boundary.step == 0:
            raise SteerError(
                f"policy {policy.name}: there is no step before the prompt's end to be rewritten"
            )
    return answers
