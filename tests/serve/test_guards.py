"""Who is let in, and what every answer carries: Host, CORS, keys, request ids."""

from __future__ import annotations

import pytest

from engine.errors import SteerError
from engine.serve.settings import ServerSettings
from tests.serve.conftest import Run, Running, error_of

PAGE = "https://chat.example.org"


@pytest.mark.parametrize(
    "host", ["localhost:8000", "LOCALHOST", "api.localhost", "127.0.0.1", "[::1]:80", "192.168.1.7"]
)
def test_own_names_and_addresses_are_answered(plain: Running, host: str):
    assert plain.client.get("/v1/models", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example.org", "127.0.0.1.evil.org:8000", "localhost.evil.org"]
)
def test_a_name_that_was_led_here_is_refused(plain: Running, host: str):
    """DNS rebinding: the browser sends the page's own name."""
    error = error_of(plain.client.get("/v1/models", headers={"Host": host}), 403)
    assert error["code"] == "host_not_allowed" and "--allowed-host" in error["message"]
    assert "evil" not in error["message"]


def test_allowed_hosts(run: Run):
    server = run(hosts=("models.example.org", ".inner.example.org"))
    for host in ("models.example.org:80", "a.inner.example.org", "localhost"):
        assert server.client.get("/ready", headers={"Host": host}).status_code == 200
    error_of(server.client.get("/ready", headers={"Host": "example.org"}), 403)
    server = run(hosts=("*",))
    assert server.client.get("/ready", headers={"Host": "any.org"}).status_code == 200


def test_a_public_server_with_keys_takes_any_name():
    """A page could lead there anyway, and has no key."""
    from engine.serve.hosts import HostCheck

    async def app(*ends: object) -> None: ...

    def is_open(**settings: object) -> bool:
        return HostCheck(app, ServerSettings(("tiny",), **settings))._open  # type: ignore[arg-type]

    assert is_open(host="0.0.0.0", keys=("k",))
    assert not is_open(host="0.0.0.0") and not is_open(keys=("k",))
    assert not is_open(host="0.0.0.0", keys=("k",), hosts=("one.org",))


@pytest.fixture(scope="module")
def guarded(run: Run) -> Running:
    return run(keys=("first-key", "second-key"), origins=(PAGE,))


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/models"),
        ("GET", "//v1//models"),
        ("GET", "/v1/v1/models"),
        ("GET", "/models/"),
        ("HEAD", "/v1/models"),
        ("GET", "/metrics"),
        ("GET", "/steer/arena"),
        ("POST", "/abort_request"),
        ("POST", "/tokenize"),
        ("GET", "/openapi.json"),
        ("GET", "/nowhere"),
        ("GET", "/%76%31/models"),
    ],
)
def test_all_but_the_probes_asks_for_a_key(guarded: Running, method: str, path: str):
    response = guarded.ask(method, path)
    assert response.status_code == 401
    assert response.headers["www-authenticate"].startswith("Bearer")
    if method != "HEAD":
        assert error_of(response, 401)["code"] == "invalid_api_key"


def test_probes_are_free(guarded: Running):
    for path in ("/health", "/ready", "/version", "/health/", "//ready"):
        assert guarded.ask("GET", path).status_code == 200


@pytest.mark.parametrize(
    "value",
    [
        "",
        "Bearer",
        "Bearer wrong",
        "Bearer first-ke",
        "Basic first-key",
        "first-key",
        "Bearer first-key second-key",
        "Bearer \xe9",
    ],
)
def test_wrong_keys(guarded: Running, value: str):
    headers = {"Authorization": value.encode("latin-1")}
    error_of(guarded.client.get("/v1/models", headers=headers), 401)


@pytest.mark.parametrize("value", ["Bearer first-key", "bearer second-key"])
def test_any_of_the_keys_opens(guarded: Running, value: str):
    headers = {"Authorization": value}
    assert guarded.client.get("/v1/models", headers=headers).status_code == 200


def test_preflights_need_no_key(guarded: Running):
    asked = {
        "Origin": PAGE,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, content-type, x-stainless-os",
    }
    response = guarded.client.options("/v1/chat/completions", headers=asked)
    assert response.status_code == 204 and not response.content
    headers = response.headers
    assert headers["access-control-allow-origin"] == PAGE
    assert "authorization" in headers["access-control-allow-headers"]
    assert "POST" in headers["access-control-allow-methods"]
    assert "Origin" in headers["vary"]


def test_answers_errors_and_streams_have_the_headers_of_cors(guarded: Running):
    page, key = {"Origin": PAGE}, {"Authorization": "Bearer first-key"}
    client = guarded.client
    ask = {**page, **key}
    responses = [
        client.get("/v1/models", headers=ask),
        client.get("/v1/models", headers=page),  # 401
        client.get("/nowhere", headers=ask),
        client.get("/test/fails/other", headers=ask),  # 500
        client.get("/test/stream?id=cors&seconds=0", headers=ask),
        client.get("/ready", headers={**page, "Host": "evil.org"}),  # 403
    ]
    assert [r.status_code for r in responses] == [200, 401, 404, 500, 200, 403]
    for response in responses:
        assert response.headers["access-control-allow-origin"] == PAGE
        assert "X-Request-Id" in response.headers["access-control-expose-headers"]


def test_other_origins_get_none(guarded: Running, plain: Running):
    other = {"Origin": "https://other.org", "Access-Control-Request-Method": "POST"}
    for server in (guarded, plain):
        for response in (
            server.client.options("/v1/models", headers=other),
            server.client.get("/ready", headers=other),
        ):
            assert response.status_code in (200, 204)
            assert "access-control-allow-origin" not in response.headers


def test_any_origin(run: Run):
    server = run(origins=("*",))
    response = server.client.get("/v1/models", headers={"Origin": "https://any.org"})
    assert response.headers["access-control-allow-origin"] == "*"


def test_a_sane_request_id_is_kept(plain: Running):
    response = plain.client.get("/v1/models", headers={"X-Request-Id": "mine-1"})
    assert response.headers["x-request-id"] == "mine-1"


@pytest.mark.parametrize("value", ["", "two words", "x" * 129, "tab\there", "é"])
def test_another_one_is_not(plain: Running, value: str):
    headers = {"X-Request-Id": value.encode("latin-1")}
    first, second = (
        plain.client.get(path, headers=headers).headers["x-request-id"]
        for path in ("/v1/models", "/nowhere")
    )
    assert first.startswith("req-") and second.startswith("req-") and first != second


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"names": ()}, "--served-model-name"),
        ({"names": ("small",)}, "'small' is taken"),
        ({"names": ("a", "a")}, "twice"),
        ({"names": ("a\nb",)}, "printable"),
        ({"keys": ("two words",)}, "API key"),
        ({"keys": ("",)}, "API key"),
        ({"origins": ("https://a.org/",)}, "--cors-origin"),
        ({"origins": ("a.org",)}, "--cors-origin"),
        ({"hosts": ("http://a.org",)}, "--allowed-host"),
        ({"max_body_bytes": 0}, "max_body_bytes"),
        ({"max_n": True}, "max_n"),
        ({"drain_timeout": float("nan")}, "drain_timeout"),
        ({"request_timeout": 0}, "request_timeout"),
    ],
)
def test_wrong_settings(wrong: dict[str, object], says: str):
    with pytest.raises(SteerError, match=says):
        ServerSettings(**{"names": ("tiny",), **wrong})  # type: ignore[arg-type]


def test_keys_are_not_shown():
    assert "secret" not in repr(ServerSettings(("tiny",), keys=("secret",)))
