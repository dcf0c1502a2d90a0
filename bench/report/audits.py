"""How well the large model's reading of the small one's steps finds errors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from bench.evaluate import Evaluation
from bench.report.domain import Domain
from engine import Completion, Engine
from engine.request import Retracted
from engine.routing.audit import SCORES, step_score
from engine.tuning.ranking import auroc

CAUGHT = 0.95  # share of wrong steps caught at the mark where false rollbacks are counted


def audit_rows(
    done: Evaluation, labels: Sequence[Sequence[bool]], domain: str
) -> Iterator[dict[str, Any]]:
    """A row for each score: how well it ranks wrong steps below right ones.

    ``done``: a run in which the large model read all steps and took none back.
    """
    pairs = [
        (step.audit, wrong)
        for completion, marks in zip(done.completions, labels, strict=True)
        for step, wrong in zip(completion.steps, marks, strict=False)
        if step.audit
    ]
    wrong = np.array([mark for _, mark in pairs], bool)
    for score in SCORES:
        scores = np.array([step_score(score, audit) for audit, _ in pairs])
        area = auroc(scores.tolist(), wrong.astype(float).tolist())
        known = bool(wrong.any() and not wrong.all())
        mark = float(np.quantile(scores[wrong], CAUGHT)) if known else None
        yield {
            "kind": "audit",
            "domain": domain,
            "score": score,
            "steps": len(pairs),
            "wrong": int(wrong.sum()),
            "auroc": area if known else None,
            "mark": mark,
            "false_rollbacks": float((scores[~wrong] <= mark).mean()) if known else None,
        }


def rollback_counts(engine: Engine, domain: Domain, done: Evaluation) -> dict[str, Any]:
    """A run's rollbacks: how many, how many of right steps, how many tokens."""
    if not any(c.retracted for c in done.completions):
        return {}
    false = sum(
        not _was_wrong(engine, domain, problem, completion, retracted)
        for problem, completion in zip(domain.test.problems, done.completions, strict=True)
        for retracted in completion.retracted
    )
    taken = [r for c in done.completions for r in c.retracted]
    return {
        "rollbacks": len(taken),
        "false_rollbacks": false,
        "dropped_tokens": sum(r.dropped for r in taken),
        "tokens": done.tokens,
    }


def _was_wrong(
    engine: Engine, domain: Domain, problem: Any, completion: Completion, retracted: Retracted
) -> bool:
    """Whether the checker finds the first error in the step that was taken back."""
    first = len(completion.prompt_token_ids)
    eos = {i for shape in engine.shapes for i in shape.eos_ids}
    before = completion.token_ids[: retracted.position - first]
    text = engine.tokenizer.text_of([t for t in (*before, *retracted.token_ids) if t not in eos])
    for delimiter in engine.config.delimiters:
        text = text.removesuffix(delimiter)
    step = sum(s.position < retracted.position for s in completion.steps)
    return domain.first_error(problem, text) == step
