"""The engine: two models that share one KV arena and write one answer."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from engine.accounting.ledger import Usage
from engine.accounting.pricing import ACCOUNTINGS, Executed, Price, pair_flops
from engine.assembly.loading import load_pair
from engine.assembly.own_calibration import own_calibration
from engine.assembly.parts import assemble
from engine.config import ROLES, EngineConfig
from engine.config.pairs import Pair
from engine.device.devices import choose_devices, choose_dtype, make_backends
from engine.device.graphs import GraphCounts
from engine.device.memory_plan import MemoryPlan
from engine.errors import SteerError
from engine.files import check_output, path_of
from engine.params import SamplingParams
from engine.request import Completion, Prompt
from engine.requests.batch import Batch, for_each, listed_prompts, trace_writer
from engine.requests.driver import CLOSED
from engine.requests.one_thread import by_one_thread
from engine.requests.stream import StreamEvent, stream_events
from engine.requests.totals import snapshot
from engine.routing.calibration import Calibration
from engine.routing.names import is_calibrated, make_policy
from engine.routing.policy import Boundary, Decision, Policy
from engine.text.chat import Message
from engine.text.tokenizer import write_chat
from kernels.ops import BackendChoice, torch_after_fork

_FREED = ("arena", "scheduler", "lanes", "_driver", "_inputs")  # by close()
AnyPolicy = str | Policy | Callable[[Boundary], str | Decision]


class Engine:
    """A small and a large model that write one answer together.

    tokenizer: encodes texts and chats; the small model's, if the two differ.
    default_params: parameters of requests without any, from the large checkpoint's
        generation_config.json.

    An engine owns its weights, its arena and its scheduler. Engines share nothing: several can live
    in one process. One thread at a time drives an engine: a call of another one meanwhile is a
    SteerError.
    """

    @torch_after_fork()
    def __init__(
        self,
        pair: str | Pair = "tiny",
        *,
        small: str | Path | None = None,
        large: str | Path | None = None,
        config: EngineConfig | None = None,
        dtype: str = "auto",
        device: str = "auto",
        devices: Sequence[str] | None = None,
        progress: bool = False,
        backends: BackendChoice | None = None,
    ) -> None:
        """Load a pair.

        Args:
            pair: a named pair, or a Pair. ``"tiny"`` comes with its weights.
            small, large: Hugging Face folder or GGUF file of each model, for other pairs.
            config: settings; the defaults suit the embedded pair.
            dtype: dtype of KV and of weights that are not quantised: "float32", "bfloat16", or
                "auto": bfloat16 on GPUs, float32 on a CPU, whatever the checkpoint has.
            device: "cpu", "cuda", "cuda:N", or "auto": a GPU if there is one.
            devices: one device for each model instead.
            progress: show a bar on standard error while weights are read.
            backends: gives what computes on a device, asked once for each; default: the kernels
                for that device, ``kernels.ops.backend_for``.

        Raises:
            SteerError: on anything that cannot be loaded, naming it.
        """
        self.devices = choose_devices(device, devices)
        self.dtype = choose_dtype(dtype, self.devices)
        self.pair = pair if isinstance(pair, Pair) else Pair.named(pair, small, large)
        self.config = EngineConfig.or_default(config)
        memory = MemoryPlan(self.devices, self.config, self.dtype.itemsize)
        chosen = make_backends(self.devices, backends)
        loaded = load_pair(
            self.pair, self.config, self.dtype, self.devices, chosen, memory.check, progress
        )
        self.shapes = loaded.shapes
        self.tokenizer = loaded.tokenizer
        self.max_context = loaded.max_context
        self.fingerprint = loaded.fingerprint
        self.default_params = loaded.default_params
        geometry = memory.geometry(self.shapes, self.max_context)
        parts = assemble(loaded, self.config, self.dtype, self.devices, chosen, geometry)
        self.arena, self.scheduler, self.lanes = parts.arena, parts.scheduler, parts.lanes
        self._driver, self._inputs = parts.driver, parts.inputs
        # Only one if both models have the same tokens.
        self._tokenizers = loaded.tokenizers if parts.bridge else loaded.tokenizers[:1]
        self._submitted: set[int] = set()  # requests whose completions step() returns

    def __repr__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"Engine({self.fingerprint!r}, {dtype}, context of {self.max_context})"

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End all requests, and free the weights and the arena; ``with Engine(...)`` does it too.

        Their completions are dropped. Later calls that need the models raise SteerError; the
        tokenizer stays usable.
        """
        if "_driver" not in vars(self):
            return
        queues = [lane.runner.queue for lane in self.lanes]
        with self._driver.one_thread():
            self._driver.close()
            for name in _FREED:
                delattr(self, name)
        gc.collect()  # the parts refer to each other
        for queue in queues:
            queue.release()

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name in _FREED and "_tokenizers" in vars(self):
                raise SteerError(CLOSED)
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __reduce__(self) -> NoReturn:
        raise SteerError(
            "an engine cannot be copied or sent to another process: make one in that process"
        )

    @by_one_thread
    def warm_up(self, sequences: int | None = None) -> None:
        """Record the graphs of all decodes of up to ``sequences`` sequences, and wait for it.

        Otherwise the first tick of each size records its graph while requests run, which stalls the
        whole GPU. Where decodes are not padded, as on a CPU, there is nothing to do.

        Args:
            sequences: most sequences at once; default: ``max_sequences``.

        Raises:
            SteerError: if requests are queued or running, or the number is out of range.
        """
        limit = self.config.max_sequences
        most = limit if sequences is None else sequences
        if not isinstance(most, int) or isinstance(most, bool) or not 1 <= most <= limit:
            raise SteerError(f"warm_up() takes from 1 to {limit} sequences, got {most!r}")
        if self._driver.live:
            raise SteerError(f"warm_up() with {len(self._driver.live)} requests: call it before")
        for lane in self.lanes:
            lane.runner.warm(range(1, most + 1))

    @property
    def graph_counts(self) -> dict[str, GraphCounts]:
        """By role: how often the lane replayed a graph, recorded one, or ran without."""
        return {r: lane.runner.graphs.counts for r, lane in zip(ROLES, self.lanes, strict=True)}

    @property
    def executed(self) -> dict[str, Executed]:
        """By role: FLOPs that the model's forward passes have executed, by term."""
        return {r: lane.runner.executed for r, lane in zip(ROLES, self.lanes, strict=True)}

    def policy(self, policy: AnyPolicy, calibration: Calibration | None = None) -> Policy:
        """Resolve a policy; calibrated policies by name use ``calibration``, fitted on this pair.

        Without it the embedded pair uses its own; SteerError for any other pair.
        """
        if is_calibrated(policy) and calibration is None:
            calibration = own_calibration(self.pair, self.fingerprint)
        return make_policy(policy, calibration, price=self.row_price)

    @property
    def row_price(self) -> float:
        """FLOPs of a row of the small model divided by those of a row of the large one."""
        small, large = (Price.of(shape).row for shape in self.shapes)
        return small / large

    def flops(self, usage: Usage) -> dict[str, int]:
        """FLOPs of both models together for these counts, in each accounting."""
        return {each: pair_flops(usage, self.shapes, each) for each in ACCOUNTINGS}

    def snapshot(self) -> dict[str, Any]:
        """What the engine holds now and has done, see ``engine.requests.totals.snapshot``."""
        block = self.config.block_tokens
        return snapshot(self.scheduler, self._driver.totals, self.arena.geometry, block)

    def submit(
        self,
        prompt: str | Sequence[int] | Prompt,
        params: SamplingParams | None = None,
        policy: AnyPolicy = "steer",
        *,
        priority: int = 0,
        timeout: float | None = None,
        settle_at_once: bool = True,
    ) -> int:
        """Queue a request for one answer and return its id; :meth:`step` runs it.

        Args:
            prompt: text or token ids; a Prompt if the models have different tokens.
            params: sampling parameters.
            policy: chooses the model of each step.
            priority: lower goes first, equal priorities in order of arrival.
            timeout: seconds from now after which it ends with the reason "deadline".
            settle_at_once: False keeps tokens open to ``scheduler.truncate`` until settled.

        Raises:
            QueueFullError: if ``max_waiting`` requests wait already; try again later.
            SteerError: if the request can never run.
        """
        n = self._inputs.params(params).n
        if n > 1:
            raise SteerError(f"submit() queues one answer, not n={n}: use submit_samples()", "n")
        rest: Any = {"priority": priority, "timeout": timeout, "settle_at_once": settle_at_once}
        return self.submit_samples(prompt, params, policy, **rest)[0]

    @by_one_thread
    def submit_samples(
        self,
        prompt: str | Sequence[int] | Prompt,
        params: SamplingParams | None = None,
        policy: AnyPolicy = "steer",
        *,
        priority: int = 0,
        timeout: float | None = None,
        settle_at_once: bool = True,
    ) -> list[int]:
        """Like :meth:`submit`, for ``params.n`` answers to one prompt: all are queued, or none."""
        checked = self._inputs.check(
            prompt, params, self.policy(policy), priority, timeout, settle_at_once
        )
        requests = self._inputs.queue(checked)
        self._submitted.update(requests)
        return list(requests)

    def chat(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool | None = None,
        **options: Any,
    ) -> list[int] | Prompt:
        """The prompt of a conversation, see :meth:`Tokenizer.chat`; if the models have different
        tokens, each one's by its own template, and a variable has to be read by one of the two."""
        ids = write_chat(self._tokenizers, messages, tools, add_generation_prompt, **options)
        return Prompt(*map(tuple, ids)) if len(ids) > 1 else ids[0]

    def abort(self, request: int) -> None:
        """End a request; :meth:`step` returns its completion. No effect on a finished one.

        Any thread may call it.
        """
        if request in self._driver.live:
            self._driver.abort(request)

    def is_live(self, request: int) -> bool:
        """Whether a request is queued or running."""
        return request in self._driver.live

    @by_one_thread
    def step(self) -> list[Completion]:
        """Run one tick of each lane; returns the submitted requests that have finished.

        A policy that raises ends its request with an abort; the exception passes through, and the
        next step continues with all other requests.
        """
        self._driver.advance()
        done = [request for request in self._driver.finished if request in self._submitted]
        self._submitted.difference_update(done)
        return [self._driver.finished.pop(request) for request in done]

    @by_one_thread
    def generate(
        self,
        prompts: Iterable[str | Sequence[int] | Prompt],
        params: SamplingParams | Sequence[SamplingParams | None] | None = None,
        policy: AnyPolicy | Sequence[AnyPolicy] = "steer",
        *,
        priority: int | Sequence[int] = 0,
        timeout: float | None = None,
        errors: str = "raise",
        progress: bool = False,
        trace: str | Path | None = None,
    ) -> list[Completion]:
        """Answer many prompts at once; completions are in the order of the prompts.

        With ``params.n`` > 1 each prompt has so many completions, next to each other.

        Args:
            prompts: texts or lists of token ids, or Prompts.
            params, priority: the same for all prompts, or a list of one for each.
            policy: a name, a Policy, or a function of a Boundary; or a list, likewise.
            timeout: seconds for each request, from when it is queued.
            errors: "raise", or "return": a prompt that cannot run gets completions with the finish
                reason "error" and the message in ``error``, and the others run.
            progress: show a bar on standard error.
            trace: file for the decision trace, JSON lines, written as requests finish.

        All prompts are checked before any runs. An exception (also Ctrl-C) aborts the requests of
        this call; other requests continue.

        Raises:
            SteerError: on a prompt that can never run, with its index.
        """
        listed = listed_prompts(prompts)
        count, inputs = len(listed), self._inputs
        if trace is not None:
            check_output(path_of(trace, "trace"), "trace")
        policies = for_each(policy, count, "policy", self.policy)
        wanted = for_each(params, count, "params", inputs.params)
        ranks = for_each(priority, count, "priority", lambda each: each)
        rows = zip(listed, wanted, policies, ranks, strict=True)
        batch = Batch(inputs, self._driver, rows, timeout, errors)
        return batch.answers(trace_writer(trace, self.fingerprint, policies), progress)

    def stream(
        self,
        prompt: str | Sequence[int] | Prompt,
        params: SamplingParams | None = None,
        policy: AnyPolicy = "steer",
        *,
        timeout: float | None = None,
    ) -> Iterator[StreamEvent]:
        """Answer one prompt piece by piece: settled text, and a step event where a step opens.

        The last event is ``done`` and has the completion. Other requests run meanwhile. Closing the
        iterator early aborts the request.
        """
        if (n := self._inputs.params(params).n) > 1:
            raise SteerError(f"a stream is one answer, not n={n}: see AsyncEngine.stream()", "n")
        checked = self._inputs.check(prompt, params, self.policy(policy), timeout=timeout)
        with self._driver.one_thread():
            request = self._inputs.queue(checked)[0]
        yield from stream_events(self._driver, self.scheduler, self.tokenizer, request)
