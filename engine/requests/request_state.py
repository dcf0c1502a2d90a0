"""A request inside the engine, from submit to its completion."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise

from engine import _core
from engine.accounting.ledger import Usage
from engine.config import ROLES
from engine.errors import SteerError
from engine.execution.logprobs import DrawLog, PromptLog
from engine.execution.token_history import TokenHistory
from engine.params import SamplingParams
from engine.request import FINISH_REASONS, Completion, Step
from engine.requests.audit_log import FORESEEN, AuditLog
from engine.requests.decision_log import DecisionLog
from engine.requests.ending import Ending, times_of
from engine.requests.retokenize import Retokenizer
from engine.requests.signal_window import SignalWindow
from engine.requests.step_log import StepLog
from engine.routing.audit import Audit
from engine.routing.budget import Budget
from engine.routing.policies import Always
from engine.routing.policy import Boundary, Decision, PolicyBase
from engine.routing.signals import Signals
from engine.routing.together import Together
from engine.routing.windows import LAST_STEP
from engine.text.tokenizer import Tokenizer

_SMALL, _LARGE = _core.SMALL, _core.LARGE
_FAILED = "a model's pass failed twice, or gave logits that cannot be sampled"


@dataclass
class RequestState:
    """What the engine keeps of a request beside the core's sequence.

    draw_key: of its draws; see ``engine.execution.draw_key``.
    retokenizer: set if the models have different tokens.
    decisions, steps, history: its decisions, steps and tokens, followed as they come.
    signals, large_signals: of the small model's tokens and of the large one's, by position.
    drawn: the last draw of each position, if log-probabilities are kept.
    prompt_log: log-probabilities of the prompt's tokens, if they are wanted.
    window, audit: of the policy; the audit may also be the parameters'. None: no audit.
    asks: likely tokens for which log-probabilities are computed; None: no log-probabilities.
    collects: whether the signals of all of the small model's tokens are kept; those of the large
        one's are if the policy needs them.
    mark: which guesses of the small model stand; at 1, those that the large model draws.
    """

    params: SamplingParams
    seed: int
    policy: PolicyBase
    prompt_tokens: int = 0
    stop_ids: tuple[int, ...] = ()
    sample: int = 0
    draw_key: int = 0
    retokenizer: Retokenizer | None = None
    decisions: DecisionLog = field(default_factory=DecisionLog)
    steps: StepLog = field(default_factory=StepLog)
    history: TokenHistory = field(default_factory=TokenHistory)
    signals: dict[int, Signals] = field(default_factory=dict)
    large_signals: dict[int, Signals] = field(default_factory=dict)
    _rest: tuple[Boundary, Decision] | None = None
    _again: tuple[int, str] | None = None  # position of a step to be written again, and the reason
    drawn: DrawLog = field(default_factory=DrawLog)
    prompt_log: PromptLog | None = None

    def __post_init__(self) -> None:
        self.window = self.policy.window
        self.mark = self.policy.speculation.mark if self.policy.speculation else 1.0
        rule = self.policy.audit or Audit.parse(self.params.audit)
        self.audit = AuditLog(rule) if rule.on else None
        # An audit needs log-probabilities of both models.
        self.asks = self.params.logprobs
        if self.audit and self.asks is None:
            self.asks = FORESEEN if self.policy.reader == ROLES[_LARGE] else 0
        self.collects = self.window.kind != "boundary" or self.params.token_signals
        self._budget = Budget(
            self.params.max_large_share,
            math.inf if self.params.max_flops is None else self.params.max_flops,
        )

    @property
    def audited(self) -> bool:
        """Whether the large model scores the small model's steps."""
        return self.audit is not None

    def shadow(self) -> RequestState:
        """The state of its shadow; without log-probabilities, which no completion would show."""
        assert self.retokenizer is not None
        params = replace(self.params, logprobs=None)
        prompt, stop_ids = len(self.retokenizer.prompt), self.retokenizer.stop_ids
        large = Always("large")
        return RequestState(params, self.seed, large, prompt, stop_ids, draw_key=self.draw_key)

    def lag(self, sequence: _core.SequenceView, position: int) -> tuple[int, int]:
        """Tokens that the large model has read, and those it still lacks before ``position``."""
        if self.retokenizer:
            return self.retokenizer.lag(sequence.id, position)
        return sequence.computed[_LARGE], position - sequence.computed[_LARGE]

    def boundary(
        self,
        core: _core.Scheduler,
        sequence: _core.SequenceView,
        read: Signals | None,
        tokenizer: Tokenizer,
    ) -> Boundary:
        """The boundary at which ``sequence`` waits; ``read``: the signals of its first token.

        The work does not grow with the number of steps before it, unless the window does.
        """
        self.steps.follow(core, sequence)
        trial, length = sequence.trial_from >= 0, sequence.length
        position = sequence.trial_from if trial else length
        step = self.steps.before(position)
        previous = self.steps.models[step - 1] if step else None
        window = SignalWindow(core, sequence.id, tokenizer, self.policy.mask)
        if self.window.kind != "boundary":
            spans = [(position, length)] if trial else self._spans(step, position, _SMALL)
            read = self.window.summary(window.seen(self.signals, spans))
        own = None
        if self.policy.needs_large_signals and previous == _LARGE:
            span = (self.steps.starts[step - 1], position)
            own = LAST_STEP.summary(window.seen(self.large_signals, [span]))
        return Boundary(
            request=sequence.id,
            step=step,
            position=position,
            prompt_tokens=sequence.prompt_length,
            previous=None if previous is None else ROLES[previous],
            catch_up=self.lag(sequence, position)[1],
            signals=read,
            tried=length - position,
            large_tokens=(
                bisect_left(sequence.replaced, position)
                if self.mark < 1
                else self.steps.large_tokens(step, position)
            ),
            thinking=sequence.thinking,
            risk=self.decisions.risk(position),
            large_signals=own,
        )

    def _spans(self, step: int, position: int, model: int) -> list[tuple[int, int]]:
        """Positions from and to, of those of a model's steps before ``step`` that the window holds.

        ``position``: where that step begins.
        """
        first = 0 if self.window.kind == "so-far" else max(0, step - 1)
        places = pairwise([*self.steps.starts[first:step], position])
        models = self.steps.models[first:step]
        return [span for span, writer in zip(places, models, strict=True) if writer == model]

    @property
    def given_up(self) -> bool:
        """Whether a decision for the rest holds."""
        return self._rest is not None

    def asks_batch(self, boundary: Boundary) -> bool:
        """Whether a decision depends on the other requests of a batch."""
        return isinstance(self.policy, Together) and self._known(boundary) is None

    def write_again(self, step: int, reason: str) -> int:
        """Have the large model write a step again; its position, to which the text must be cut."""
        position = self.steps.starts[step]
        self._again = position, reason
        return position

    def decide(
        self, boundary: Boundary, flops: Callable[[], int], answer: Decision | None = None
    ) -> tuple[Decision, bool]:
        """Ask the policy, unless an audit or an earlier decision for the rest has the answer.

        Decisions at later positions, which a truncation undid, are dropped.

        Args:
            flops: of the request so far and the large model's catch-up.
            answer: the decision, if a batch has been decided together.

        Returns:
            The decision, whose ``rest`` says that no later boundary needs a decision, and whether
            later boundaries need not be read. The two differ: a policy's decision for the rest
            ends with the thinking part or at a rolled back step, and budgets and text that cannot
            cross may overrule it at each step.
        """
        self.decisions.cut(boundary.position)
        decision = answer or self._known(boundary) or self.policy.decide(boundary)
        if not isinstance(decision, Decision) or decision.model not in ROLES:
            raise SteerError(
                f"a policy must answer 'small', 'large' or a Decision, got {decision!r}"
            )
        if decision.rest:
            self._rest = self._rest or (boundary, decision)
        decision = self._crossing(self._budget.cap(decision, boundary, flops), boundary)
        self.decisions.add(boundary, decision)
        audited = self.audit is not None and self.audit.rule.rolls_back
        asked_again = boundary.thinking or not self._budget.unlimited or audited or self.retokenizer
        return replace(decision, rest=decision.rest and not asked_again), decision.rest

    def _crossing(self, decision: Decision, boundary: Boundary) -> Decision:
        """The decision; where the text cannot cross, the small model with the reason."""
        if self.retokenizer is None or decision.model != ROLES[_LARGE]:
            return decision
        why = self.retokenizer.obstacle(boundary.request, boundary.position)
        if why is None:
            return decision
        said = f"{why} ({decision.reason})"
        return replace(decision, model=ROLES[_SMALL], reason=said, kind="crossing")

    def _known(self, boundary: Boundary) -> Decision | None:
        """The decision, if it does not depend on the policy any more."""
        return self._redo(boundary) or self._standing(boundary)

    def _redo(self, boundary: Boundary) -> Decision | None:
        """The large model, if the step here was rolled back by an audit, or is written again."""
        if self._again and self._again[0] == boundary.position:
            return Decision(ROLES[_LARGE], self._again[1], kind="doubtful")
        if self.audit is None:
            return None
        self.audit.forget(boundary.position)
        reason = self.audit.redo.get(boundary.position)
        if reason is None:
            return None
        self._rest = None  # an earlier decision for the rest ends here
        return Decision("large", reason, rest=self.audit.rule.rest, kind="audit")

    def _standing(self, boundary: Boundary) -> Decision | None:
        """The decision for the rest, if it still holds."""
        if self._rest is None:
            return None
        origin, decision = self._rest
        if origin.position < boundary.position and origin.thinking == boundary.thinking:
            return decision
        self._rest = None
        return None

    def complete(self, sequence: _core.Sequence, tokenizer: Tokenizer) -> Completion:
        """The completion of a finished sequence."""
        tokens: list[int] = sequence.tokens.tolist()
        starts = sequence.steps
        ends = [*(start for start, _ in starts[1:]), len(tokens)] if starts else []
        written = [
            (i, start, tokens[start:end], ROLES[model])
            for i, ((start, model), end) in enumerate(zip(starts, ends, strict=True))
            if end > start
        ]
        texts = tokenizer.texts_of([ids for _, _, ids, _ in written])
        steps = tuple(
            self._step(*each, text, sequence.replaced)
            for each, text in zip(written, texts, strict=True)
        )
        generated = tokens[sequence.prompt_length :]
        reason = FINISH_REASONS[sequence.finish]
        ending = Ending.of(sequence, generated, self.params, tokenizer)
        return Completion(
            request_id=sequence.id,
            prompt_token_ids=tuple(tokens[: sequence.prompt_length]),
            text=ending.text,
            token_ids=tuple(generated),
            finish_reason=reason,
            steps=steps,
            usage=self.usage(sequence),
            seed=self.seed,
            sample=self.sample,
            logprobs=None if self.params.logprobs is None else self.drawn.of(steps),
            prompt_logprobs=(
                self.prompt_log.of(sequence.prompt_length) if self.prompt_log else None
            ),
            retracted=tuple(self.audit.retracted) if self.audit else (),
            token_signals=self._token_signals(steps) if self.params.token_signals else None,
            error=_FAILED if reason == "error" else None,
            stop_reason=ending.stop_reason,
            times=times_of(sequence),
        )

    def usage(self, sequence: _core.Sequence | _core.SequenceView) -> Usage:
        """The request's counts so far, its shadow's included."""
        own = replace(Usage.of(sequence), audited=self.audit.rows if self.audit else 0)
        if self.prompt_log:
            own.scored[self.prompt_log.model] = self.prompt_log.rows
        return own + self.retokenizer.usage(sequence.id) if self.retokenizer else own

    def _pairs(self, position: int, end: int, model: str) -> tuple[tuple[float, float], ...]:
        if self.audit is None or model == ROLES[_LARGE]:
            return ()
        return tuple(self.audit.pairs(position, end, self.drawn.small))

    def _token_signals(self, steps: tuple[Step, ...]) -> tuple[Signals | None, ...]:
        return tuple(
            self.signals.get(position) if step.model == ROLES[_SMALL] else None
            for step in steps
            for position in range(step.position, step.position + len(step.token_ids))
        )

    def opened(self, index: int, position: int, model: str) -> Step:
        """A step that opens at ``position``, without its text and tokens."""
        # After a decision for the rest, or on a whole answer, later steps follow that decision.
        boundary, decision = self.decisions.of(position) or (None, None)
        here = boundary is not None and boundary.position == position
        return Step(
            index=index,
            position=position,
            model=model,
            text="",
            token_ids=(),
            reason=decision.reason if decision else "on trial, not decided",
            kind=decision.kind if decision else "other",
            signals=boundary.signals if boundary and here else None,
            posterior=decision.posterior if decision and here else None,
            tried=boundary.tried if boundary and here else 0,
            catch_up=boundary.catch_up if boundary and here else 0,
        )

    def _step(
        self, index: int, position: int, ids: list[int], model: str, text: str, replaced: list[int]
    ) -> Step:
        return replace(
            self.opened(index, position, model),
            text=text,
            token_ids=tuple(ids),
            audit=self._pairs(position, position + len(ids), model),
            replaced=(
                tuple(
                    at - position
                    for at in replaced[
                        bisect_left(replaced, position) : bisect_left(replaced, position + len(ids))
                    ]
                )
                if self.mark < 1 and model == ROLES[_LARGE]
                else None
            ),
        )
