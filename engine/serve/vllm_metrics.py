"""vLLM's names for numbers that mean the same here, so that dashboards made for it work.

A name of vLLM is shown with its definition or not at all. Counts of tokens are those of answers
that have ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from engine.serve.engine_numbers import Snapshot
from engine.serve.metrics import Metrics

_ENGINE = "0"
# vLLM knows no other reasons; all the rest are aborts there.
_REASONS = {"stop": "stop", "length": "length", "repetition": "stop", "error": "error"}


class VllmNames(Collector):
    """The numbers of ``metrics`` and of an engine's ``snapshot()`` under vLLM's names.

    name: the model name served.
    block_tokens: tokens of a KV block.
    """

    def __init__(
        self, metrics: Metrics, snapshot: Callable[[], Snapshot], name: str, block_tokens: int
    ) -> None:
        self._snapshot = snapshot
        self._metrics = metrics
        self._labels = {"model_name": name, "engine": _ENGINE}
        self._block_tokens = block_tokens
        self._same = {
            "vllm:time_to_first_token_seconds": metrics.first_token_seconds,
            "vllm:inter_token_latency_seconds": metrics.between_seconds,
            "vllm:e2e_request_latency_seconds": metrics.whole_seconds,
            "vllm:request_queue_time_seconds": metrics.queue_seconds,
            "vllm:request_prefill_time_seconds": metrics.prefill_seconds,
            "vllm:request_decode_time_seconds": metrics.decode_seconds,
            "vllm:request_inference_time_seconds": metrics.inference_seconds,
            "vllm:request_prompt_tokens": metrics.prompt_sizes,
            "vllm:request_generation_tokens": metrics.generated_sizes,
            "vllm:prompt_tokens": metrics.prompt_tokens,
            "vllm:prefix_cache_queries": metrics.prompt_tokens,
            "vllm:prefix_cache_hits": metrics.cached_tokens,
            "vllm:admission_rejections": metrics.rejections,
        }

    def describe(self) -> list[Metric]:
        """Nothing: an engine is not asked before it serves."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All numbers, renamed."""
        now = self._snapshot()
        yield self._gauge("num_requests_running", "Requests that run.", now["running"])
        yield self._gauge("num_requests_waiting", "Requests that wait.", now["waiting"])
        yield self._gauge("kv_cache_usage_perc", "KV memory in use, 0 to 1.", now["kv_usage"])
        yield self._counter("num_preemptions", "Preemptions.", now["preemptions"])
        yield self._cache_config(now)
        yield self._counter("generation_tokens", "Generated tokens.", self._generated())
        yield self._successes()
        for name, number in self._same.items():
            for family in number.collect():
                yield self._renamed(family, name)

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(f"vllm:{name}", text, labels=list(self._labels))
        family.add_metric(list(self._labels.values()), value)
        return family

    def _counter(self, name: str, text: str, value: float) -> Metric:
        family = CounterMetricFamily(f"vllm:{name}", text, labels=list(self._labels))
        family.add_metric(list(self._labels.values()), value)
        return family

    def _generated(self) -> float:
        families = self._metrics.generated_tokens.collect()
        return sum(s.value for f in families for s in f.samples if s.name.endswith("_total"))

    def _cache_config(self, now: Snapshot) -> Metric:
        blocks = now["capacity"]["large"] // self._block_tokens
        facts = {"block_size": str(self._block_tokens), "num_gpu_blocks": str(blocks)}
        labels = {**self._labels, **facts}
        family = GaugeMetricFamily("vllm:cache_config_info", "Always 1.", labels=list(labels))
        family.add_metric(list(labels.values()), 1)
        return family

    def _successes(self) -> Metric:
        counts = dict.fromkeys(("stop", "length", "abort", "error"), 0.0)
        for family in self._metrics.finished_total.collect():
            for sample in family.samples:
                if sample.name.endswith("_total"):
                    reason = sample.labels["finish_reason"]
                    counts[_REASONS.get(reason, "abort")] += sample.value
        labels = [*self._labels, "finished_reason"]
        family = CounterMetricFamily("vllm:request_success", "Ended requests.", labels=labels)
        for reason, count in counts.items():
            family.add_metric([*self._labels.values(), reason], count)
        return family

    def _renamed(self, family: Metric, name: str) -> Metric:
        """A family under another name, with vLLM's labels."""
        renamed = Metric(name, family.documentation, family.type)
        for sample in family.samples:
            end = sample.name.removeprefix(family.name)
            renamed.add_sample(name + end, {**sample.labels, **self._labels}, sample.value)
        return renamed
