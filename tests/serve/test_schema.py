"""Requests drawn from our own /openapi.json, right and wrong ones, against a real process.

``STEER_SCHEMA_SECONDS`` is the time for all of them; ``make serve-schema`` takes 60.
"""

from __future__ import annotations

import os
import time
from typing import Any

import hypothesis
import pytest
import schemathesis
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import load_all_checks
from schemathesis.specs.openapi.checks import positive_data_acceptance

from tests.serve.served import Served

load_all_checks()
pytestmark = pytest.mark.xdist_group("steer-serve")
SECONDS = float(os.environ.get("STEER_SCHEMA_SECONDS", "8"))
WITH_BODY = (
    *("POST /v1/chat/completions", "POST /v1/completions"),
    *("POST /tokenize", "POST /detokenize", "POST /abort_request"),
)
WITHOUT = (
    *("GET /health", "GET /ready", "GET /version", "GET /metrics", "GET /steer/arena"),
    *("GET /v1/models", "GET /v1/models/{model_id}"),
)
SETTINGS = hypothesis.settings(
    deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck)
)


@pytest.fixture(scope="module")
def schema(tiny_process: Served) -> Any:
    return schemathesis.openapi.from_dict(tiny_process.client.get("/openapi.json").json())


def operation(schema: Any, name: str) -> Any:
    method, path = name.split()
    return schema[path][method]


def test_every_operation_is_tested(schema: Any):
    found = {f"{o.ok().method.upper()} {o.ok().path}" for o in schema.get_all_operations()}
    assert found == {*WITH_BODY, *WITHOUT}


@pytest.mark.parametrize("name", WITHOUT)
def test_without_a_body(tiny_process: Served, schema: Any, name: str):
    drawn = operation(schema, name).as_strategy()
    assert ask(tiny_process, drawn, 0, 10 if "{" in name else 1) <= {200, 404}


@pytest.mark.parametrize("name", WITH_BODY)
def test_bodies(tiny_process: Served, schema: Any, name: str):
    """No 5xx, only documented statuses and types, errors in OpenAI's form, wrong bodies refused."""
    drawn, share = operation(schema, name), 2 if "completions" in name else 1
    end = time.monotonic() + SECONDS * share / (len(WITH_BODY) + 2)
    right = drawn.as_strategy(generation_mode=GenerationMode.POSITIVE)
    wrong = drawn.as_strategy(generation_mode=GenerationMode.NEGATIVE)
    statuses, number = set[int](), 0
    while not number or time.monotonic() < end:
        statuses |= ask(tiny_process, right.flatmap(answerable), number, 20)
        statuses |= ask(tiny_process, wrong | right, number, 20)
        number += 1
    assert {200, 400} <= statuses
    assert tiny_process.idle()


def ask(server: Served, cases: Any, number: int, count: int) -> set[int]:
    """Send some requests; the statuses of their answers."""
    statuses = set()

    @hypothesis.seed(number)
    @hypothesis.settings(SETTINGS, max_examples=count)
    @hypothesis.given(cases)
    def one(case: Any) -> None:
        response = case.call(base_url=server.url)
        # A schema does not say which fields exclude each other, nor which texts a pair knows.
        case.validate_response(response, excluded_checks=[positive_data_acceptance])
        statuses.add(response.status_code)
        if response.status_code >= 400:
            error = response.json()["error"]
            assert error["message"] and "\n" not in error["message"]
            assert len(response.content) < 2000

    one()
    return statuses


def answerable(case: Any) -> st.SearchStrategy[Any]:
    """With a prompt that the pair knows, few tokens, and only some of the other fields."""
    body = case.body
    known = {
        "prompt": ["1+1?\n\n", [1, 2], ["7", "8"]] if "completions" in case.path else ["1"],
        "messages": [[{"role": "user", "content": "1+1?"}]],
        "tokens": [[1, 2, 3]],
    }
    fixed = {name: st.sampled_from(known[name]) for name in body.keys() & known.keys()}
    others = sorted(body.keys() - known.keys() - {"max_tokens"})

    def made(values: dict[str, Any], kept: list[str]) -> Any:
        case.body = {**{name: body[name] for name in kept}, **values}
        if "completions" in case.path:
            case.body["max_tokens"] = 4
        return case

    kept = st.lists(st.sampled_from(others), max_size=3, unique=True) if others else st.just([])
    return st.builds(made, st.fixed_dictionaries(fixed), kept)
