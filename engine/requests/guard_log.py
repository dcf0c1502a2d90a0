"""Says when the core's guard acts: fewer sequences run at once, as too much was computed again."""

from __future__ import annotations

import logging

_log = logging.getLogger(__name__)


class GuardLog:
    """Follows one scheduler's limit. One line when it falls, one when all may run again.

    The limit moves in small steps while the guard acts; they are not logged. The first time is a
    WARNING, as it tells that the engine is set up for more than its memory holds; what follows in
    the life of the engine says nothing new: INFO.
    """

    def __init__(self, most: int) -> None:
        """``most``: sequences that may run at once while the guard does nothing."""
        self._most = most
        self._acts = False
        self._level = logging.WARNING

    def look(self, limit: int) -> None:
        """``limit``: sequences that may run at once now."""
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
            limit, self._most,
        )  # fmt: skip
        self._level = logging.INFO
