"""Health, models, counts, and the end of a request by its id."""

from __future__ import annotations

import threading
import time

from tests.serve.conftest import Run, Running, error_of


def test_health_is_of_the_engine(run: Run):
    server = run()
    response = server.client.get("/health")
    assert response.status_code == 200 and response.json() == {"status": "ok"}
    assert server.client.get("/ready").json() == {"status": "ready"}
    server.service.served.is_alive = False
    assert error_of(server.client.get("/health"), 503)["type"] == "server_error"
    error_of(server.client.get("/ready"), 503)
    server.service.served.is_alive = True
    assert server.client.get("/health").status_code == 200


def test_models(run: Run):
    server = run(names=("mine", "other"), policy="steer:0.7")
    listed = server.client.get("/v1/models").json()
    assert listed["object"] == "list"
    assert [m["id"] for m in listed["data"]] == ["mine", "other", "small", "large"]
    for model in listed["data"]:
        assert model["object"] == "model" and model["owned_by"] == "steer-engine"
        assert model["max_model_len"] == 512 and abs(model["created"] - time.time()) < 3600
        assert server.client.get(f"/v1/models/{model['id']}").json() == model
    mine, _, small, _ = (m["steer"] for m in listed["data"])
    assert mine["roles"] == ["small", "large"] and mine["policy"] == "steer:0.7"
    assert small["roles"] == ["small"] and small["policy"] == "small"


def test_an_unknown_model_is_told_the_known_ones(plain: Running):
    for name in ("gpt-4", "Tiny", "tiny/x"):
        error = error_of(plain.client.get(f"/v1/models/{name}"), 404)
        assert error["code"] == "model_not_found" and error["param"] == "model"
        assert error["message"].endswith("served: tiny, small, large")


def test_version_and_arena(plain: Running):
    assert plain.client.get("/version").json() == {"version": "0.1.0"}
    arena = plain.client.get("/steer/arena").json()
    assert arena["slabs"] == {"small": 1, "large": 2, "free": 4, "lent": 0}


def test_a_request_is_ended_by_its_id(run: Run):
    server = run()
    for name in ("cmpl-1", "chatcmpl-own"):
        seen: list[bytes] = []

        def read(name: str = name, seen: list[bytes] = seen) -> None:
            seen.append(server.client.get("/test/stream", params={"id": name}).content)

        reader = threading.Thread(target=read)
        reader.start()
        end = time.monotonic() + 20
        while name not in server.service.open:
            assert time.monotonic() < end
            time.sleep(0.01)
        rid = name.removeprefix("chatcmpl-")
        field = "rid" if rid == name else "request_id"
        assert server.client.post("/abort_request", json={field: rid}).json() == {"aborted": 1}
        reader.join(20)
        assert b'"error"' in seen[0]
        assert server.client.post("/abort_request", json={field: rid}).json() == {"aborted": 0}


def test_ids_of_the_wrong_kind(plain: Running):
    for body in ({}, {"rid": 5}, {"rid": ""}, {"rid": None}, [], "x", {"rid": ["a"]}):
        assert error_of(plain.client.post("/abort_request", json=body), 400)["param"] == "rid"


def test_a_stream_comes_as_it_is_written(plain: Running):
    """Its head and its first frame at once, not when it is whole; nothing packs it."""
    request = {"params": {"id": "first"}, "headers": {"Accept-Encoding": "gzip"}}
    with plain.client.stream("GET", "/test/stream", **request) as response:
        assert "content-encoding" not in response.headers
        first = next(response.iter_raw())
        assert first.startswith(b"data: {}") and b"[DONE]" not in first
        plain.client.post("/abort_request", json={"rid": "first"})


def test_a_stream_that_fails_is_cut_off(plain: Running):
    """The client sees that it is not whole, rather than a good end."""
    answer = plain.raw(b"GET /test/broken HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert b"data: {}" in answer and not answer.endswith(b"0\r\n\r\n")
