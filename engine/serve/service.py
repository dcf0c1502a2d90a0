"""What the routes share: the engine, the settings, the policies and the open requests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import ValidationError

from engine.aio import AsyncEngine
from engine.aio.answers import Answers
from engine.engine import Engine
from engine.errors import QueueFullError, SteerError
from engine.routing.calibration import Calibration
from engine.serve import errors
from engine.serve.errors import ApiError
from engine.serve.metrics import Metrics
from engine.serve.routing import Routes
from engine.serve.settings import ServerSettings
from engine.serve.token_texts import TokenTexts


class Service:
    """One engine and all that answers from it; ``app.state.service``.

    served: the AsyncEngine.
    engine: the engine in it.
    settings: names and limits.
    metrics: told of every request.
    token_texts: single tokens as JSON shows them.
    routes: model names and policies.
    streams: streams that are being written.
    open: the answers of each open request, by its id, for /abort_request.
    """

    def __init__(
        self,
        served: AsyncEngine,
        engine: Engine,
        settings: ServerSettings,
        metrics: Metrics,
        calibration: Calibration | None = None,
    ) -> None:
        """``calibration``: for policies that need one; None takes the embedded pair's own."""
        self.served, self.engine, self.settings, self.metrics = served, engine, settings, metrics
        self.token_texts = TokenTexts(engine.tokenizer)
        self.routes = Routes(
            settings.names, settings.policy, lambda name: engine.policy(name, calibration)
        )
        self.open: dict[str, list[Answers]] = {}
        self.streams = 0

    @contextmanager
    def opened(self, identity: str) -> Iterator[list[Answers]]:
        """A list for the answers of a request; what is unfinished in it at the end is aborted.

        Raises:
            ApiError: 400 if an open request has this id.
        """
        if identity in self.open:
            raise ApiError(400, "request_id: an open request has this id", param="request_id")
        answers: list[Answers] = []
        self.open[identity] = answers
        try:
            yield answers
        finally:
            self.ended(identity, answers)
            for each in answers:
                each.abort("left")

    def ended(self, identity: str, answers: list[Answers]) -> None:
        """The id of a request is free again; no effect the second time."""
        if self.open.get(identity) is answers:
            del self.open[identity]


@contextmanager
def counted_rejections(service: Service) -> Iterator[None]:
    """Requests that find the queue full are counted."""
    try:
        yield
    except QueueFullError:
        service.metrics.rejected()
        raise


@contextmanager
def clear_errors() -> Iterator[None]:
    """Bad input of any kind leaves as an ApiError."""
    try:
        yield
    except (SteerError, ValidationError) as error:
        raise errors.of(error) from None
