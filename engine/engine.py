"""The engine: two models, one arena, one trace."""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

from tqdm import tqdm

from engine import _core
from engine.config import ROLES, TINY, EngineConfig, Pair
from engine.errors import SteerError
from engine.lane import Lane
from engine.live import LiveRequest
from engine.loading import DTYPES, load_pair
from engine.memory import ArenaGeometry, KVArena
from engine.models.decoder import Decoder
from engine.pricing import Executed, Price
from engine.request import Completion, SamplingParams
from engine.routing.calibration import Calibration
from engine.routing.policies import Boundary, Decision, Policy, make_policy
from engine.runner import ModelRunner
from engine.trace import TraceWriter

_SMALL, _LARGE = range(2)
_DECIDE = 0
_NOBODY = -1

AnyPolicy = str | Policy | Callable[[Boundary], str | Decision]


class Engine:
    """A small and a large model that share a tokenizer and write one answer together.

    An engine owns its weights, its arena and its scheduler, and frees them when it dies. Engines
    share nothing: several can live in one process. One thread drives an engine.
    """

    def __init__(
        self,
        pair: str | Pair = "tiny",
        *,
        small: str | Path | None = None,
        large: str | Path | None = None,
        config: EngineConfig | None = None,
        dtype: str = "float32",
    ) -> None:
        """Load a pair.

        Args:
            pair: a named pair, or a Pair. ``"tiny"`` comes with its weights.
            small: Hugging Face folder of the small model, for the pairs that have no weights here.
            large: likewise.
            config: settings; the defaults suit the embedded pair.
            dtype: of weights and KV, "float32" or "bfloat16".

        Raises:
            SteerError: on anything that cannot be loaded, naming it.
        """
        if dtype not in DTYPES:
            raise SteerError(f"unknown dtype {dtype!r}; known: {', '.join(DTYPES)}")
        self.pair = pair if isinstance(pair, Pair) else Pair.named(pair, small, large)
        self.config = config or EngineConfig()
        self.dtype = DTYPES[dtype]
        loaded = load_pair(self.pair, self.config, self.dtype)
        self.shapes = loaded.shapes
        self.tokenizer = loaded.tokenizer
        self.max_context = loaded.max_context
        self.fingerprint = loaded.fingerprint
        self.arena = KVArena(
            ArenaGeometry.of(self.shapes, self.config, self.dtype.itemsize), self.dtype
        )
        self.scheduler = self._build_scheduler()
        self.lanes = tuple(
            Lane(self.scheduler, self._build_runner(model, decoder))
            for model, decoder in enumerate(loaded.decoders)
        )
        self._live: dict[int, LiveRequest] = {}
        self._ticks = 0
        self._idle = 0
        self._events: deque[tuple[Lane | None, int, int, int]] = deque()
        self._finished: list[Completion] = []

    def _build_scheduler(self) -> _core.Scheduler:
        config, geometry = self.config, self.arena.geometry
        return _core.Scheduler(
            slabs=geometry.slabs,
            slots=geometry.slots,
            block_tokens=config.block_tokens,
            max_context=self.max_context,
            max_sequences=config.max_sequences,
            max_tick_tokens=config.max_tick_tokens,
            recompute_cost=(Price.of(self.shapes[0]).row, Price.of(self.shapes[1]).row),
            prefix_cache=config.prefix_cache,
            delimiters=[d.encode() for d in config.delimiters],
            token_bytes=self.tokenizer.bytes,
        )

    def _build_runner(self, model: int, decoder: Decoder) -> ModelRunner:
        layout = self.arena.layout(decoder.config, model, self.config.block_tokens)
        rows = self.arena.rows(decoder.config)
        return ModelRunner(model, decoder, rows, layout, self.tokenizer.size)

    @property
    def executed(self) -> dict[str, Executed]:
        """FLOPs that the forward passes of each model really ran so far, by term."""
        return {r: lane.runner.executed for r, lane in zip(ROLES, self.lanes, strict=True)}

    def policy(self, policy: AnyPolicy) -> Policy:
        """Resolve a policy; "steer" by name uses the calibration that comes with the pair."""
        calibration = None
        if policy == "steer":
            path = TINY / "calibration.json"
            if self.pair.name != "tiny":
                raise SteerError(
                    f"pair {self.pair.name} comes without a calibration: fit one and pass "
                    "Steer(calibration)"
                )
            calibration = Calibration.load(path, self.fingerprint)
        return make_policy(policy, calibration)

    def submit(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams | None = None,
        policy: AnyPolicy = "steer",
        *,
        priority: int = 0,
        settle_at_once: bool = True,
    ) -> int:
        """Queue a request and return its id; :meth:`step` moves it on.

        Args:
            prompt: text or token ids.
            params: how to sample.
            policy: who writes each step.
            priority: lower goes first; equal ones in order of arrival.
            settle_at_once: False keeps tokens open to ``scheduler.truncate`` until settled.

        Raises:
            SteerError: if the request can never run.
        """
        params = params or SamplingParams()
        chosen = self.policy(policy)
        ids = self._prompt_ids(prompt)
        stops = {*params.stop_token_ids, *self.shapes[0].eos_ids, *self.shapes[1].eos_ids}
        seed = secrets.randbits(64) if params.seed is None else params.seed
        try:
            request = self.scheduler.add(
                ids,
                max_tokens=params.max_tokens,
                stop_ids=sorted(stops),
                reader=_SMALL if chosen.reads else _NOBODY,
                priority=priority,
                settle_at_once=settle_at_once,
            )
        except ValueError as error:
            raise SteerError(str(error)) from None
        self._live[request] = LiveRequest(params, seed, chosen)
        return request

    def _prompt_ids(self, prompt: str | Sequence[int]) -> list[int]:
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        if not ids:
            raise SteerError("the prompt is empty")
        wrong = next((i for i in ids if not 0 <= i < self.tokenizer.size), None)
        if wrong is not None:
            raise SteerError(f"token id {wrong} is not in 0..{self.tokenizer.size - 1}")
        return ids

    def abort(self, request: int) -> None:
        """End a request; its completion comes with the next :meth:`step`."""
        self.scheduler.abort(request)

    def step(self) -> list[Completion]:
        """One tick of each lane. Returns the requests that it finished.

        A policy that raises ends its request with an abort; the exception passes through, and the
        next step goes on with all others.
        """
        self._handle_events(None)
        progressed = False
        for lane in self.lanes:
            progressed |= lane.tick(self._live)
            self._handle_events(lane)
        finished, self._finished = self._finished, []
        self._idle = 0 if progressed or finished or not self._live else self._idle + 1
        if self._idle > 1:  # one empty round may only have given a reservation back
            raise RuntimeError(f"no lane can move while {len(self._live)} requests wait")
        self._ticks += 1
        every = self.config.check_every
        if not self._live or (every and self._ticks % every == 0):
            self.scheduler.check_integrity()
        return finished

    def _handle_events(self, lane: Lane | None) -> None:
        """Answer what the core asks until it asks no more; ``lane`` is the one that just ran."""
        while True:
            self._events.extend((lane, *event) for event in self.scheduler.take_events())
            if not self._events:
                return
            source, kind, request, row = self._events.popleft()
            if kind == _DECIDE:
                self._route(source, request, row)
            else:
                sequence = self.scheduler.sequence(request)
                self.scheduler.forget(request)
                live = self._live.pop(request)
                self._finished.append(live.complete(sequence, self.tokenizer))

    def _route(self, lane: Lane | None, request: int, row: int) -> None:
        sequence = self.scheduler.sequence(request)
        if not sequence.awaits_route:
            return  # taken back or ended since the event
        steps = sequence.steps
        boundary = Boundary(
            request=request,
            step=len(steps),
            position=sequence.length,
            prompt_tokens=sequence.prompt_length,
            previous=ROLES[steps[-1][1]] if steps else None,
            catch_up=sequence.length - sequence.computed[_LARGE],
            signals=lane.signals(row) if lane is not None and row >= 0 else None,
        )
        try:
            decision = self._live[request].decide(boundary)
        except BaseException:
            self.scheduler.abort(request)
            raise
        self.scheduler.route(request, ROLES.index(decision.model))

    def generate(
        self,
        prompts: Sequence[str | Sequence[int]],
        params: SamplingParams | None = None,
        policy: AnyPolicy = "steer",
        *,
        progress: bool = False,
        trace: str | Path | None = None,
    ) -> list[Completion]:
        """Answer many prompts at once; completions come in the order of the prompts.

        Args:
            prompts: texts or lists of token ids.
            params: how to sample, the same for all.
            policy: a name, a Policy, or a function of a Boundary.
            progress: show a bar on standard error.
            trace: file for the decision trace, JSON lines, written as requests finish.

        An exception (Ctrl-C among them) ends every request of the engine; the engine lives on.
        """
        chosen = self.policy(policy)
        done: dict[int, Completion] = {}
        writer = TraceWriter(Path(trace), self.fingerprint, chosen.name) if trace else None
        with writer or nullcontext(), tqdm(total=len(prompts), disable=not progress) as bar:
            try:
                order = [self.submit(p, params, chosen) for p in prompts]
                wanted = set(order)
                while len(done) < len(order):
                    for completion in self.step():
                        if completion.request_id not in wanted:
                            continue
                        done[completion.request_id] = completion
                        bar.update()
                        if writer:
                            writer.add(completion)
            except BaseException:
                self._abort_all()
                raise
        return [done[request] for request in order]

    def _abort_all(self) -> None:
        for request in self._live:
            self.scheduler.abort(request)
        for lane in self.lanes:
            lane.abandon()
        self.scheduler.take_events()
        self._events.clear()
        self._finished.clear()
        for request in self._live:
            self.scheduler.forget(request)
        self._live.clear()
