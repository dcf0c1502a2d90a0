"""URLs as clients build them, and the right one where nothing is found."""

from __future__ import annotations

import pytest

from tests.serve.conftest import Run, Running, error_of


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models",
        "/v1//models",
        "//v1/models",
        "/v1/v1/models",
        "/v1/v1//models/",
        "/models",
        "/models/",
        "/v1/models/",
        "/%2Fv1/models",
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_all_forms_are_understood(plain: Running, method: str, path: str):
    response = plain.ask(method, path)
    assert response.status_code == 200
    assert bool(response.content) == (method == "GET")
    assert int(response.headers["content-length"]) > 0


@pytest.mark.parametrize("path", ["/health", "/ready", "/version", "/metrics", "/steer/arena"])
def test_head_where_there_is_get(plain: Running, path: str):
    response = plain.client.head(path)
    assert response.status_code == 200 and not response.content
    assert plain.client.get(path).status_code == 200  # on the same connection


@pytest.mark.parametrize(
    ("path", "right"),
    [
        ("/v1/model", "/v1/models"),
        ("/v1/model/", "/v1/models"),
        ("/api/v1/models", "/v1/models"),
        ("/v1/v1/v1/models", "/v1/models"),
        ("/v1/test/body", "/test/body"),
        ("/Health", "/health"),
    ],
)
def test_a_404_says_the_right_url(plain: Running, path: str, right: str):
    error = error_of(plain.client.get(path), 404)
    assert f"did you mean {right} ?" in error["message"]


@pytest.mark.parametrize("path", ["/", "/v1", "/v2/secret", "/" + "x" * 5000, "/v1/modéls/😀"])
def test_a_404_without_a_right_one(plain: Running, path: str):
    error = error_of(plain.client.get(path), 404)
    assert "secret" not in error["message"] and "xxx" not in error["message"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/v1/models", {"GET", "HEAD"}),
        ("DELETE", "/v1/models/tiny", {"GET", "HEAD"}),
        ("GET", "/abort_request", {"POST"}),
        ("HEAD", "/abort_request", {"POST"}),
        ("PUT", "/v1//models/", {"GET", "HEAD"}),
    ],
)
def test_a_wrong_method(plain: Running, method: str, path: str, allowed: set[str]):
    response = plain.ask(method, path)
    assert response.status_code == 405
    assert set(response.headers["allow"].split(", ")) == allowed
    if method != "HEAD":
        error_of(response, 405)


def test_names_with_slashes(run: Run):
    server = run(names=("qwen-1.5b/qwen-32b",))
    for path in ("/v1/models/qwen-1.5b/qwen-32b", "/v1/models/qwen-1.5b%2Fqwen-32b"):
        assert server.ask("GET", path).json()["id"] == "qwen-1.5b/qwen-32b"


def test_nothing_is_loaded_from_elsewhere(plain: Running):
    """FastAPI's pages of documentation take scripts from another host."""
    for path in ("/docs", "/redoc", "/docs/oauth2-redirect"):
        error_of(plain.client.get(path), 404)
    document = plain.client.get("/openapi.json").json()
    assert {"/v1/models", "/v1/models/{model_id}", "/health"} <= document["paths"].keys()
    assert "HTTPValidationError" not in str(document["paths"]["/v1/models"])
