"""The numbers of /metrics: their names, their closed sets of labels, and vLLM's names."""

from __future__ import annotations

import time
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from engine.serve.engine_numbers import EngineNumbers
from engine.serve.metrics import Metrics
from engine.serve.vllm_metrics import VllmNames
from tests.serve.conftest import Run
from tests.serve.stand_in import SNAPSHOT

Values = dict[tuple[str, frozenset[tuple[str, str]]], float]


def values(text: str) -> Values:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(found: Values, name: str, **labels: str) -> float:
    return found[name, frozenset(labels.items())]


def exposed(metrics: Metrics) -> Values:
    return values(metrics.exposed(None)[0].decode())


@dataclass
class Step:
    """STAND-IN for a Step with the new fields."""

    model: str
    kind: str = "doubt"
    posterior: float | None = None
    tried: int = 0
    catch_up: int = 0
    large_tokens: int = 0


def completion(sample: int = 0, reason: str = "stop") -> SimpleNamespace:
    """STAND-IN for a Completion with the new fields: 10 tokens, 4 of them the large model's."""
    steps = (
        Step("small", posterior=0.95, tried=3),
        Step("large", posterior=0.2, tried=2, catch_up=7, large_tokens=4),
        Step("small", "sure"),
    )
    return SimpleNamespace(
        finish_reason=reason,
        prompt_token_ids=(1,) * 20,
        cached_tokens=16,
        token_ids=(2,) * 10,
        steps=steps,
        sample=sample,
        large_token_share=0.4,
        times=SimpleNamespace(queued=1.0, started=1.5, first_token=2.0, ended=4.0),
    )


def test_what_an_answer_counts():
    metrics = Metrics("0.1", "tiny")
    metrics.request_started()
    metrics.first_token(0.02)
    metrics.tokens_between(0.3, 3)
    metrics.finished(completion(), 3.0, {"decode": 100}, {"decode": 400})
    metrics.finished(completion(1, "abort"), 3.0, {"decode": 10})
    found = exposed(metrics)
    assert value(found, "steer_requests_started_total") == 1
    assert value(found, "steer_requests_finished_total", finish_reason="abort") == 1
    assert value(found, "steer_prompt_tokens_total") == 20  # samples share their prompt
    assert value(found, "steer_cached_prompt_tokens_total") == 16
    assert value(found, "steer_generated_tokens_total", model="large") == 8
    assert value(found, "steer_generated_tokens_total", model="small") == 12
    assert value(found, "steer_inter_token_seconds_count") == 3
    assert value(found, "steer_inter_token_seconds_sum") == pytest.approx(0.3)
    assert value(found, "steer_inter_token_seconds_bucket", le="0.1") == 3
    assert value(found, "steer_time_to_first_token_seconds_bucket", le="0.02") == 1
    assert value(found, "steer_queue_seconds_sum") == 1.0
    assert value(found, "steer_decode_seconds_sum") == 4.0
    assert value(found, "steer_flops_total", accounting="decode") == 110
    assert value(found, "steer_flops_large_alone_total", accounting="decode") == 400
    assert value(found, "steer_build_info", version="0.1", pair="tiny") == 1


def test_what_its_steps_count():
    metrics = Metrics("0.1", "tiny")
    metrics.finished(completion(), 3.0, {})
    found = exposed(metrics)
    assert value(found, "steer_steps_total", author="small", reason="doubt") == 1
    assert value(found, "steer_steps_total", author="small", reason="sure") == 1
    assert value(found, "steer_handoffs_total", to="large") == 1
    assert value(found, "steer_handoffs_total", to="small") == 1
    assert value(found, "steer_catchup_tokens_sum") == 7
    assert value(found, "steer_posterior_count") == 2
    assert value(found, "steer_trial_tokens_total", fate="kept") == 3
    assert value(found, "steer_trial_tokens_total", fate="dropped") == 2
    assert value(found, "steer_large_share_sum") == 0.4


def test_an_answer_that_never_ran():
    metrics = Metrics("0.1", "tiny")
    bare = completion(reason="abort")
    bare.times = SimpleNamespace(queued=1.0, started=None, first_token=None, ended=2.0)
    bare.steps, bare.token_ids = (), ()
    metrics.finished(bare, 1.0, {})
    found = exposed(metrics)
    assert value(found, "steer_queue_seconds_count") == 0
    assert value(found, "steer_large_share_count") == 0
    assert value(found, "steer_requests_finished_total", finish_reason="abort") == 1


def test_causes_are_a_closed_set():
    metrics = Metrics("0.1", "tiny")
    for cause in ("client", "client", "drain", "something a client sent"):
        metrics.aborted(cause)
    metrics.rejected()
    found = exposed(metrics)
    assert value(found, "steer_aborts_total", cause="client") == 2
    assert value(found, "steer_aborts_total", cause="error") == 1
    assert value(found, "steer_aborts_total", cause="slow_reader") == 0
    assert value(found, "steer_queue_rejections_total") == 1


def test_the_engines_counts():
    metrics = Metrics("0.1", "tiny")
    now = dict(SNAPSHOT)
    metrics.follow(lambda: now)
    found = exposed(metrics)
    assert value(found, "steer_requests_running") == 2
    assert value(found, "steer_requests_waiting") == 1
    assert value(found, "steer_rows_total", model="small", kind="sampled") == 8
    assert value(found, "steer_ticks_total", model="large") == 4
    assert value(found, "steer_arena_slabs", owner="free") == 4
    assert value(found, "steer_arena_tokens", model="large", state="cached") == 7
    assert value(found, "steer_preemptions_total") == 1
    assert value(found, "steer_kv_usage_ratio") == 0.25
    now["running"] = 5
    assert value(exposed(metrics), "steer_requests_running") == 5


def test_names_of_vllm():
    metrics = Metrics("0.1", "tiny")
    metrics.registry.register(VllmNames(metrics, lambda: SNAPSHOT, "mine", 16))
    metrics.first_token(0.02)
    metrics.rejected()
    for reason in ("stop", "repetition", "length", "abort", "deadline", "error"):
        metrics.finished(completion(reason=reason), 3.0, {})
    found = exposed(metrics)
    labels = {"model_name": "mine", "engine": "0"}
    for name, expected in {
        "num_requests_running": 2,
        "num_requests_waiting": 1,
        "kv_cache_usage_perc": 0.25,
        "num_preemptions_total": 1,
        "prompt_tokens_total": 120,
        "generation_tokens_total": 60,
        "prefix_cache_queries_total": 120,
        "prefix_cache_hits_total": 96,
        "admission_rejections_total": 1,
        "time_to_first_token_seconds_count": 1,
        "e2e_request_latency_seconds_sum": 18,
        "request_queue_time_seconds_sum": 3,
        "request_prefill_time_seconds_sum": 3,
        "request_decode_time_seconds_sum": 12,
        "request_inference_time_seconds_sum": 15,
        "request_prompt_tokens_count": 6,
        "request_generation_tokens_sum": 60,
        "inter_token_latency_seconds_count": 0,
    }.items():
        assert value(found, f"vllm:{name}", **labels) == expected, name
    assert value(found, "vllm:time_to_first_token_seconds_bucket", le="0.02", **labels) == 1
    for reason, expected in {"stop": 2, "length": 1, "abort": 2, "error": 1}.items():
        counted = value(found, "vllm:request_success_total", finished_reason=reason, **labels)
        assert counted == expected
    facts = {"block_size": "16", "num_gpu_blocks": "20"}
    assert value(found, "vllm:cache_config_info", **labels, **facts) == 1


def test_over_http(run: Run):
    with_names, without = run(metrics_compat=True), run()
    response = with_names.client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    assert value(values(response.text), "vllm:num_requests_running", model_name="tiny", engine="0")
    text = without.client.get("/metrics").text
    assert "vllm:" not in text and "process_resident_memory_bytes" in text
    accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
    response = with_names.client.get("/metrics", headers=accept)
    assert response.headers["content-type"].startswith("application/openmetrics-text")
    assert response.text.endswith("# EOF\n")


def test_labels_are_closed_sets(run: Run):
    """Nothing that a client sends is one: neither URLs, nor methods, nor models."""
    server = run()
    for i in range(20):
        server.client.get(f"/nowhere/{i}")
        server.client.get(f"/v1/models/unknown-{i}")
        server.client.request(f"METHOD{i}", "/v1/models")
    found = values(server.client.get("/metrics").text)
    requests = {key: n for key, n in found.items() if key[0] == "steer_http_requests_total"}
    assert len(requests) == 3
    name = "steer_http_requests_total"
    assert value(found, name, route="unmatched", method="GET", status="4xx") == 20
    assert value(found, name, route="/v1/models/{model_id}", method="GET", status="4xx") == 20
    assert value(found, name, route="/v1/models", method="other", status="4xx") == 20


def test_open_streams(run: Run):
    server = run()
    with server.client.stream("GET", "/test/stream", params={"id": "one"}) as response:
        frames = response.iter_raw()
        next(frames)
        assert value(values(server.client.get("/metrics").text), "steer_streams_open") == 1
        server.client.post("/abort_request", json={"rid": "one"})
        assert list(frames)
    end = time.monotonic() + 20
    while value(values(server.client.get("/metrics").text), "steer_streams_open"):
        assert time.monotonic() < end


def test_apps_share_no_numbers():
    first, second = Metrics("0.1", "tiny"), Metrics("0.1", "tiny")
    first.rejected()
    assert value(exposed(second), "steer_queue_rejections_total") == 0
    assert EngineNumbers(lambda: SNAPSHOT).describe() == []
