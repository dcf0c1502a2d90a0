"""Computed rows by model and kind. Counts hold no shapes, so they can be priced at any."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from engine import _core
from engine._core import ROW_KINDS as ROW_KINDS
from engine._core import RowKind
from engine.accounting.speculated import Speculated
from engine.config import ROLES

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Usage:
    """Counts of one request or of many; equal if all counts are.

    rows: int64 [model, kind, (rows, keys)]: computed rows, and the keys they attended to, a row's
        own key included. Every computed row has one kind: ``prompt`` and ``catchup`` rows were read
        (a catch-up row lies after the prompt), a ``sampled`` row gave a token that was kept, a
        ``discarded`` row one that was dropped, a ``recompute`` row had been computed before. Rows
        of the small model that gave a guess at what the large one draws are ``drafted`` where it
        drew the same, else ``rejected``.
    entries: int64 [model, (rows, keys)]: not computed here: the prefixes that a server which keeps
        no KV between calls would read again, one at each entry of a model.
    cached: int64 [model]: rows not computed because the prefix cache, or another sample of the
        same prompt, had them.
    decision_wait: rows that the small model still had to read at boundaries before they could be
        decided; all of them are among ``rows``.
    audited: rows of the large model, among ``rows``, that went through the head only for an audit.
    scored: int64 [model]: rows, among ``rows``, that went through the head only for the
        log-probabilities of a prompt's tokens.
    restored: rows of the large model not computed because they were copied back from host memory.
    retokenised: int64 [model]: tokens that crossing text was encoded into, prompts not included.
    crossings: how often text crossed between models with different tokens.
    spared: int64 [model, kind, (rows, keys)]: ``cached`` and ``restored`` rows, by the kind that
        they would have had if computed (all zeros in traces older than this field).
    speculated: passes and guesses of the large model's steps that were guessed.
    """

    rows: Counts = field(default_factory=lambda: np.zeros((2, len(ROW_KINDS), 2), np.int64))
    entries: Counts = field(default_factory=lambda: np.zeros((2, 2), np.int64))
    cached: Counts = field(default_factory=lambda: np.zeros(2, np.int64))
    decision_wait: int = 0
    audited: int = 0
    restored: int = 0
    retokenised: Counts = field(default_factory=lambda: np.zeros(2, np.int64))
    crossings: int = 0
    spared: Counts = field(default_factory=lambda: np.zeros((2, len(ROW_KINDS), 2), np.int64))
    speculated: Speculated = field(default_factory=Speculated)
    scored: Counts = field(default_factory=lambda: np.zeros(2, np.int64))

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.rows + other.rows,
            self.entries + other.entries,
            self.cached + other.cached,
            self.decision_wait + other.decision_wait,
            self.audited + other.audited,
            self.restored + other.restored,
            self.retokenised + other.retokenised,
            self.crossings + other.crossings,
            self.spared + other.spared,
            self.speculated + other.speculated,
            self.scored + other.scored,
        )

    def _counts(self) -> tuple[int | tuple[int, ...], ...]:
        values = (getattr(self, each.name) for each in fields(self))
        return tuple(tuple(v.flat) if isinstance(v, np.ndarray) else v for v in values)

    def __eq__(self, other: object) -> bool:
        return self._counts() == other._counts() if isinstance(other, Usage) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._counts())

    @classmethod
    def of(cls, sequence: _core.Sequence | _core.SequenceView) -> Usage:
        """The counts of a sequence of the core so far."""
        cached = np.array(sequence.cached)
        wait, restored = sequence.decision_wait, sequence.restored
        return cls(
            sequence.rows,
            sequence.entries,
            cached,
            wait,
            restored=restored,
            spared=sequence.spared,
            speculated=Speculated.of(sequence.speculation),
        )

    def unspared(self) -> Usage:
        """The counts without a prefix cache or host memory: spared rows count as computed.

        Rows recomputed after an eviction stay, though another cache might not have evicted them.
        """
        none = np.zeros_like
        return replace(
            self,
            rows=self.rows + self.spared,
            spared=none(self.spared),
            cached=none(self.cached),
            restored=0,
        )

    def count(self, role: str, kind: str) -> int:
        """Rows of one kind on the ``small`` or ``large`` model."""
        return int(self.rows[ROLES.index(role), ROW_KINDS.index(kind), 0])

    @property
    def recomputed_share(self) -> float:
        """Share of both models' rows that were computed again (kind ``recompute``), 0.0 if no rows.

        Their KV had been evicted or lost.
        """
        rows = self.rows[:, :, 0]
        return float(rows[:, RowKind.recompute].sum() / max(1, rows.sum()))

    @classmethod
    def alone(cls, role: str, prompt: int, generated: int) -> Usage:
        """Counts of one model alone on a prompt and ``generated`` tokens, without evictions."""
        usage, model, last = cls(), ROLES.index(role), prompt + generated - 1
        usage.rows[model, RowKind.prompt] = span_counts(0, prompt - 1)
        usage.rows[model, RowKind.sampled] = span_counts(prompt - 1, last)
        usage.entries[model] = span_counts(0, prompt - 1)
        return usage

    @classmethod
    def alone_sum(cls, role: str, lengths: Iterable[tuple[int, int]]) -> Usage:
        """:meth:`alone` over many (prompt, generated) lengths."""
        return sum((cls.alone(role, prompt, generated) for prompt, generated in lengths), cls())

    def to_json(self) -> dict[str, Any]:
        """``{"rows": {role: {kind: [rows, keys]}}, "entries": ..., "cached": {role: rows}}``;
        ``speculated`` and ``scored`` only if there are any."""
        return {
            "rows": _kinds_to_json(self.rows),
            "spared": _kinds_to_json(self.spared),
            "entries": {role: self.entries[i].tolist() for i, role in enumerate(ROLES)},
            "cached": _by_role(self.cached),
            "decision_wait": self.decision_wait,
            "audited": self.audited,
            "restored": self.restored,
            "retokenised": _by_role(self.retokenised),
            "crossings": self.crossings,
            **({"speculated": self.speculated.to_json()} if self.speculated.passes else {}),
            **({"scored": _by_role(self.scored)} if self.scored.any() else {}),
        }

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Usage:
        """Inverse of :meth:`to_json`; KeyError, TypeError or ValueError on anything else."""
        rows = _kinds_from_json(raw["rows"])
        spared = _kinds_from_json(raw["spared"]) if "spared" in raw else np.zeros_like(rows)
        entries = [raw["entries"][role] for role in ROLES]
        cached = [int(raw["cached"][role]) for role in ROLES]
        wait = int(raw.get("decision_wait", 0))  # older traces have none
        audited, restored, crossings = (
            int(raw.get(name, 0)) for name in ("audited", "restored", "crossings")
        )
        retokenised, scored = (
            np.array([int(raw.get(name, {}).get(role, 0)) for role in ROLES], np.int64)
            for name in ("retokenised", "scored")
        )
        usage = cls(
            rows,
            np.array(entries, np.int64),
            np.array(cached),
            wait,
            audited,
            restored,
            retokenised,
            crossings,
            spared,
            Speculated.of(raw.get("speculated", {})),
            scored,
        )
        if usage.entries.shape != (2, 2):
            raise ValueError("counts must be pairs of rows and keys")
        return usage


# Traces have these kinds only where something was guessed.
_GUESSED = ROW_KINDS[RowKind.drafted], ROW_KINDS[RowKind.rejected]


def _by_role(counts: Counts) -> dict[str, int]:
    return dict(zip(ROLES, counts.tolist(), strict=True))


def _kinds_to_json(counts: Counts) -> dict[str, dict[str, list[int]]]:
    return {
        role: {
            kind: count
            for kind, count in zip(ROW_KINDS, counts[i].tolist(), strict=True)
            if kind not in _GUESSED or any(count)
        }
        for i, role in enumerate(ROLES)
    }


def _kinds_from_json(raw: Mapping[str, Any]) -> Counts:
    none = {kind: [0, 0] for kind in _GUESSED}
    by_role = [{**none, **raw[role]} for role in ROLES]
    counts = np.array([[row[kind] for kind in ROW_KINDS] for row in by_role], np.int64)
    if counts.shape != (2, len(ROW_KINDS), 2):
        raise ValueError("counts must be pairs of rows and keys")
    return counts


def span_counts(first: int, last: int) -> tuple[int, int]:
    """Rows and keys of the positions [first, last)."""
    return last - first, (last * (last + 1) - first * (first + 1)) // 2
