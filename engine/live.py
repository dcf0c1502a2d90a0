"""A request inside the engine, from submit to its completion."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from engine import _core
from engine.config import ROLES
from engine.errors import SteerError
from engine.ledger import Usage
from engine.logprobs import DrawLog
from engine.request import FINISH_REASONS, Completion, SamplingParams, Step
from engine.routing.policies import Boundary, Decision, Policy
from engine.tokenizer import Tokenizer


@dataclass
class LiveRequest:
    """What the engine keeps beside the core's sequence: the policy and its decisions."""

    params: SamplingParams
    seed: int
    policy: Policy
    prompt_tokens: int = 0
    stop_ids: tuple[int, ...] = ()
    decisions: dict[int, tuple[Boundary, Decision]] = field(default_factory=dict)  # by position
    drawn: DrawLog = field(default_factory=DrawLog)

    def decide(self, boundary: Boundary) -> Decision:
        """Ask the policy; decisions that a truncation took back are forgotten."""
        for position in [p for p in self.decisions if p >= boundary.position]:
            del self.decisions[position]
        decision = self.policy.decide(boundary)
        if not isinstance(decision, Decision) or decision.model not in ROLES:
            raise SteerError(
                f"a policy must answer 'small', 'large' or a Decision, got {decision!r}"
            )
        self.decisions[boundary.position] = (boundary, decision)
        return decision

    def complete(self, sequence: _core.Sequence, tokenizer: Tokenizer) -> Completion:
        """The completion of a finished sequence."""
        tokens: list[int] = sequence.tokens.tolist()
        starts = sequence.steps
        ends = [*(start for start, _ in starts[1:]), len(tokens)] if starts else []
        steps = tuple(
            self._step(i, start, tokens[start:end], ROLES[model], tokenizer)
            for i, ((start, model), end) in enumerate(zip(starts, ends, strict=True))
            if end > start
        )
        generated = tokens[sequence.prompt_length :]
        return Completion(
            request_id=sequence.id,
            prompt_token_ids=tuple(tokens[: sequence.prompt_length]),
            text=tokenizer.text_of(generated, cut=sequence.cut_bytes),
            token_ids=tuple(generated),
            finish_reason=FINISH_REASONS[sequence.finish],
            steps=steps,
            usage=Usage(sequence.rows, sequence.entries, np.array(sequence.cached)),
            seed=self.seed,
            logprobs=None if self.params.logprobs is None else self.drawn.of(steps),
        )

    def _step(
        self, index: int, position: int, ids: list[int], model: str, tokenizer: Tokenizer
    ) -> Step:
        # After a decision for the rest, later boundaries ask nobody and stand on that decision.
        found = self.decisions.get(position)
        decision = found[1] if found else self.decisions[max(self.decisions)][1]
        return Step(
            index=index,
            position=position,
            model=model,
            text=tokenizer.text_of(ids),
            token_ids=tuple(ids),
            reason=decision.reason,
            signals=found[0].signals if found else None,
            posterior=decision.posterior if found else None,
        )
