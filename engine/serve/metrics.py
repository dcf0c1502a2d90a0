"""The numbers of a server for Prometheus, under names that begin with ``steer_``.

Every label's values are of a closed set: nothing that a client sends is one. Counts of the engine
are read from its snapshot when they are asked for (``engine_numbers.py``); what is known of an
answer is counted here when it ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import choose_encoder

from engine.request import Completion, Step, Times
from engine.serve.engine_numbers import EngineNumbers, Snapshot

# vLLM's bounds, so that its dashboards show the same.
_TTFT = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560),
)
_WHOLE = (
    *(0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60),
    *(120, 240, 480, 960, 1920, 7680),
)
_BETWEEN = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1, 2.5, 5, 7.5, 10, 20, 40, 80),
)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)
_SHARES = tuple(n / 10 for n in range(1, 11))
ABORTS = ("client", "deadline", "drain", "request", "slow_reader", "error")


class Metrics:
    """The numbers of one app, in a registry of their own.

    version, pair: for ``steer_build_info``.
    """

    def __init__(self, version: str, pair: str) -> None:
        self.registry = CollectorRegistry()
        self._times()
        self._answers()
        self._routing()
        self._http()
        ProcessCollector(registry=self.registry)
        info = self._gauge("steer_build_info", "Always 1.", "version", "pair")
        info.labels(version, pair).set(1)

    def follow(self, snapshot: Callable[[], Snapshot]) -> None:
        """Show an engine's own counts too; ``snapshot`` is called whenever they are asked for."""
        self.registry.register(EngineNumbers(snapshot))

    def exposed(self, accept: str | None) -> tuple[bytes, str]:
        """The text of all numbers and its content type, in the format that ``accept`` asks for."""
        encode, content_type = choose_encoder(accept or "")
        return encode(self.registry), content_type

    def request_started(self) -> None:
        """An answer was asked for and is queued: one call for each sample."""
        self._started.inc()

    def first_token(self, seconds: float) -> None:
        """An answer's first token stood so many seconds after its request arrived."""
        self.first_token_seconds.observe(seconds)

    def tokens_between(self, seconds: float, n: int) -> None:
        """``n`` tokens came together, so many seconds after those before them."""
        for _ in range(n):
            self.between_seconds.observe(seconds / n)

    def finished(
        self,
        completion: Completion,
        seconds: float,
        flops: Mapping[str, int],
        flops_large_alone: Mapping[str, int] | None = None,
    ) -> None:
        """An answer ended, also an aborted one.

        Args:
            seconds: since its request arrived.
            flops: FLOPs by accounting, as ``engine.flops(completion.usage)``.
            flops_large_alone: those of the large model alone for the same tokens.
        """
        self.finished_total.labels(completion.finish_reason).inc()
        self.whole_seconds.observe(seconds)
        self._count_tokens(completion)
        self._observe_times(completion.times)
        for accounting, count in flops.items():
            self._flops.labels(accounting).inc(count)
        for accounting, count in (flops_large_alone or {}).items():
            self._flops_alone.labels(accounting).inc(count)
        self._count_steps(completion.steps)
        if completion.token_ids:
            self._large_share.observe(completion.large_token_share)

    def aborted(self, cause: str) -> None:
        """An answer was ended early: a cause of ``ABORTS``; any other counts as "error"."""
        self._aborts.labels(cause if cause in ABORTS else "error").inc()

    def abandoned(self, reason: str) -> None:
        """An answer ended whose completion was not waited for; its tokens are not counted."""
        self.finished_total.labels(reason).inc()

    def rejected(self) -> None:
        """A request was refused because too many wait."""
        self.rejections.inc()

    def answered(self, route: str, method: str, status: int) -> None:
        """An HTTP request ended; ``status`` 0: without an answer."""
        self._requests.labels(route, method, f"{status // 100}xx" if status else "none").inc()

    def _count_tokens(self, completion: Completion) -> None:
        if completion.sample == 0:  # samples share their prompt
            prompt = len(completion.prompt_token_ids)
            self.prompt_tokens.inc(prompt)
            self.cached_tokens.inc(completion.cached_tokens)
            self.prompt_sizes.observe(prompt)
        generated = len(completion.token_ids)
        large = sum(step.large_tokens for step in completion.steps)
        self.generated_sizes.observe(generated)
        self.generated_tokens.labels("large").inc(large)
        self.generated_tokens.labels("small").inc(max(0, generated - large))

    def _observe_times(self, times: Times | None) -> None:
        if times is None:
            return
        for histogram, start, end in (
            (self.queue_seconds, times.queued, times.started),
            (self.prefill_seconds, times.started, times.first_token),
            (self.decode_seconds, times.first_token, times.ended),
            (self.inference_seconds, times.started, times.ended),
        ):
            if start is not None and end is not None:
                histogram.observe(max(0.0, end - start))

    def _count_steps(self, steps: Iterable[Step]) -> None:
        before = None
        for step in steps:
            self._steps.labels(step.model, step.kind).inc()
            if step.posterior is not None:
                self._posterior.observe(step.posterior)
            if step.model != before:
                if before is not None:
                    self._handoffs.labels(step.model).inc()
                if step.model == "large":
                    self._catch_up.observe(step.catch_up)
            if step.tried:
                # What was on trial stays if the small model goes on.
                self._trial.labels("kept" if step.model == "small" else "dropped").inc(step.tried)
            before = step.model

    def _times(self) -> None:
        self.first_token_seconds = self._histogram(
            "steer_time_to_first_token_seconds", "From a request's arrival.", _TTFT
        )
        self.between_seconds = self._histogram(
            "steer_inter_token_seconds", "Between an answer's tokens, once a token.", _BETWEEN
        )
        self.whole_seconds = self._histogram(
            "steer_request_seconds", "From a request's arrival to its answer's end.", _WHOLE
        )
        self.queue_seconds = self._histogram("steer_queue_seconds", "Waited to run.", _WHOLE)
        self.prefill_seconds = self._histogram(
            "steer_prefill_seconds", "From running to the first token.", _WHOLE
        )
        self.decode_seconds = self._histogram(
            "steer_decode_seconds", "From the first token to the end.", _WHOLE
        )
        self.inference_seconds = self._histogram(
            "steer_inference_seconds", "From running to the end.", _WHOLE
        )

    def _answers(self) -> None:
        self._started = self._counter("steer_requests_started_total", "Answers asked for.")
        self.finished_total = self._counter(
            "steer_requests_finished_total", "Answers that ended.", "finish_reason"
        )
        self.prompt_tokens = self._counter(
            "steer_prompt_tokens_total", "Tokens of the prompts of answers that ended."
        )
        self.cached_tokens = self._counter(
            "steer_cached_prompt_tokens_total", "Of these, tokens that were not computed."
        )
        self.generated_tokens = self._counter(
            "steer_generated_tokens_total", "Tokens of answers that ended, by author.", "model"
        )
        self.prompt_sizes = self._histogram(
            "steer_request_prompt_tokens", "Tokens of a prompt.", _TOKENS
        )
        self.generated_sizes = self._histogram(
            "steer_request_generated_tokens", "Tokens of an answer.", _TOKENS
        )
        self._aborts = self._counter("steer_aborts_total", "Answers ended early.", "cause")
        for cause in ABORTS:
            self._aborts.labels(cause)
        self.rejections = self._counter(
            "steer_queue_rejections_total", "Requests refused because too many wait."
        )

    def _routing(self) -> None:
        self._steps = self._counter(
            "steer_steps_total",
            "Steps of answers that ended, by author and class of reason.",
            "author",
            "reason",
        )
        self._handoffs = self._counter(
            "steer_handoffs_total", "Steps by another model than the step before.", "to"
        )
        self._catch_up = self._histogram(
            "steer_catchup_tokens", "Unread tokens where the large model took over.", (0, *_TOKENS)
        )
        self._posterior = self._histogram(
            "steer_posterior", "Probability that a boundary is a confident one.", _SHARES
        )
        self._large_share = self._histogram(
            "steer_large_share", "Share of an answer's tokens by the large model.", (0.0, *_SHARES)
        )
        self._trial = self._counter("steer_trial_tokens_total", "Tokens on trial.", "fate")
        self._flops = self._counter(
            "steer_flops_total", "FLOPs of answers that ended.", "accounting"
        )
        self._flops_alone = self._counter(
            "steer_flops_large_alone_total",
            "FLOPs that the large model alone would have taken for the same tokens.",
            "accounting",
        )

    def _http(self) -> None:
        self._requests = self._counter(
            "steer_http_requests_total",
            "HTTP requests by the route's template.",
            "route",
            "method",
            "status",
        )
        self.streams = self._gauge("steer_streams_open", "Streams that are being sent.")

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, bounds: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, registry=self.registry, buckets=bounds)
