"""Logs when the core's guard acts: too much is recomputed, so fewer sequences run at once."""

from __future__ import annotations

import logging

_log = logging.getLogger(__name__)


class GuardLog:
    """Follows one scheduler's limit: logs a line when it falls, and one when it is back.

    The small steps of the limit in between are not logged. The first fall is a WARNING, since the
    engine is configured for more requests than its memory holds; later ones are INFO.
    """

    def __init__(self, most: int) -> None:
        """``most``: sequences that may run at once without the guard."""
        self._most = most
        self._acts = False
        self._level = logging.WARNING

    def look(self, limit: int) -> None:
        """Compare with the present ``limit``: sequences that may run at once now."""
        acts = limit < self._most
        if acts == self._acts:
            return
        self._acts = acts
        if not acts:
            _log.info("memory holds again what runs: up to %d sequences at once", self._most)
            return
        _log.log(
            self._level,
            "memory for KV is short, and too much is computed again: no more than %d sequences at "
            "once for now, max_sequences is %d; raise arena_tokens or lower max_sequences",
            limit,
            self._most,
        )
        self._level = logging.INFO
