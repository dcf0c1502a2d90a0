"""Bodies and heads of requests: what is refused, early, and in OpenAI's form."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.serve.conftest import Run, Running, error_of

LIMIT = 100_000
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def small(run: Run) -> Running:
    return run(max_body_bytes=LIMIT)


def send(server: Running, body: bytes, path: str = "/test/body", **headers: str):  # type: ignore[no-untyped-def]
    return server.client.post(path, content=body, headers={**JSON, **headers})


def test_a_body_is_read(small: Running):
    assert send(small, b'{"count": 3}').text == "3"
    types = {"Content-Type": 'Application/JSON; charset="UTF-8"'}
    assert small.client.post("/test/body", content=b'{"count": 4}', headers=types).text == "4"


@pytest.mark.parametrize(
    "body",
    [
        b'{"count": NaN}',
        b'{"count": Infinity}',
        b'{"count": 1e400}',
        b'{"count": 1, "stop": ["\\ud800"]}',
        b"[" * 5000 + b"]" * 5000,
        b'{"count": ' + b"9" * 5000 + b"}",
        b'{"count": 1',
        b"secret-prompt",
        b'{"count": 1} secret-prompt',
        b"\xff\xfe",
        b"",
        b"  \n",
    ],
)
def test_what_is_no_json(small: Running, body: bytes):
    error = error_of(send(small, body), 400)
    assert error["type"] == "invalid_request_error"
    assert "secret" not in error["message"] and "999" not in error["message"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"count": "secret-prompt"}, "count"),
        ({}, "count"),
        ({"count": 1, "stop": ["a", 5]}, "stop[1]"),
        (["secret-prompt"], None),
        ("secret-prompt", None),
    ],
)
@pytest.mark.parametrize("path", ["/test/body", "/test/declared"])
def test_validation_is_a_400_without_the_input(small: Running, path: str, body: object, param: str):
    error = error_of(send(small, json.dumps(body).encode(), path), 400)
    assert error["param"] == param
    assert "secret" not in json.dumps(error)


def test_a_long_list_of_faults_gives_a_short_answer(small: Running):
    body = json.dumps({"count": 1, "stop": [5] * 5000}).encode()
    assert len(send(small, body).content) < 2000


@pytest.mark.parametrize(
    "kind",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "",
        "application/json; charset=latin-1",
        "application/jsonp",
    ],
)
def test_other_types_are_refused(small: Running, kind: str):
    """What a page of another origin can send without being asked first: a drive-by POST."""
    headers = {"Content-Type": kind} if kind else {}
    for path in ("/test/body", "/abort_request"):
        response = small.client.post(path, content=b'{"count": 1, "rid": "x"}', headers=headers)
        assert "application/json" in error_of(response, 415)["message"]


def test_a_packed_body_is_refused(small: Running):
    error_of(send(small, b"\x1f\x8b", **{"Content-Encoding": "gzip"}), 415)


def test_the_limit_counts_bytes(small: Running):
    body = b'{"count": 7}'
    assert send(small, body + b" " * (LIMIT - len(body))).text == "7"
    error = error_of(send(small, body + b" " * (LIMIT - len(body) + 1)), 413)
    assert str(LIMIT) in error["message"] and "--max-body-bytes" in error["message"]


def test_a_body_in_chunks_is_counted_while_it_comes(small: Running):
    def chunks(count: int) -> Iterator[bytes]:
        for _ in range(count):
            yield b" " * 10_000

    error_of(small.client.post("/test/body", content=chunks(40), headers=JSON), 413)
    read = small.client.post("/test/body", content=iter([b'{"coun', b't": 8}']), headers=JSON)
    assert read.text == "8"


def head(length: int, expect: bool) -> bytes:
    lines = ["POST /test/body HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    lines += [f"Content-Length: {length}", "Connection: close"]
    lines += ["Expect: 100-continue"] if expect else []
    return "\r\n".join([*lines, "", ""]).encode()


def test_too_long_a_body_is_refused_before_it_comes(small: Running):
    for expect in (True, False):
        answer = small.raw(head(10**12, expect))
        assert answer.startswith(b"HTTP/1.1 413 ") and b"100 Continue" not in answer


def test_a_body_is_waited_for_if_the_client_waits_too(small: Running):
    answer = small.raw(head(12, True) + b'{"count": 9}')
    assert b"HTTP/1.1 200 OK" in answer and answer.endswith(b"9")


@pytest.mark.parametrize(
    "lines",
    [
        [b"X-Long: " + b"x" * 1_000_000],
        [b"X-%d: 1" % i for i in range(20_000)],
        [b"this is no header"],
    ],
)
def test_floods_of_headers_are_refused(small: Running, lines: list[bytes]):
    flood = b"\r\n".join([b"GET /v1/models HTTP/1.1", b"Host: localhost", *lines, b"", b""])
    status, _, rest = small.raw(flood).partition(b"\r\n")
    assert status == b"HTTP/1.1 400 Bad Request"
    assert set(json.loads(rest.partition(b"\r\n\r\n")[2])["error"]) >= {"message", "type"}
    assert small.client.get("/health").status_code == 200


def test_what_routes_raise(small: Running):
    error = error_of(small.client.get("/test/fails/steer"), 400)
    assert error["message"] == "max_tokens must be at least 1"
    response = small.client.get("/test/fails/full")
    assert error_of(response, 429)["type"] == "rate_limit_error"
    assert int(response.headers["retry-after"]) >= 1
    response = small.client.get("/test/fails/other")
    assert "secret" not in error_of(response, 500)["message"]
    assert response.headers["x-should-retry"] == "false"


def test_a_client_that_leaves_while_it_sends_is_no_error(small: Running, caplog):  # type: ignore[no-untyped-def]
    import socket
    import time

    with caplog.at_level("INFO", "engine.serve"):
        connection = socket.create_connection(("127.0.0.1", small.port))
        connection.sendall(head(1000, False) + b'{"cou')
        time.sleep(0.1)
        connection.close()
        end = time.monotonic() + 10
        while not (lines := [r.fields for r in caplog.records if r.msg == "request"]):
            assert time.monotonic() < end
            time.sleep(0.02)
    assert lines[-1]["aborted"] == "client" and lines[-1]["status"] is None
    assert not [r for r in caplog.records if r.levelname == "ERROR"]
