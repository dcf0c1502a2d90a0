"""What /openapi.json says of answers, and of bodies that handlers read by themselves."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

Responses = dict[int | str, dict[str, Any]]

_TEXT = {"type": "string"}
_TEXT_OR_NULL = {"type": ["string", "null"]}
_ERROR_PARTS = {"message": _TEXT, "type": _TEXT, "param": _TEXT_OR_NULL, "code": _TEXT_OR_NULL}


def _object(parts: dict[str, Any], others: bool = True) -> dict[str, Any]:
    required = list(parts)
    return {
        "type": "object",
        "properties": parts,
        "required": required,
        "additionalProperties": others,
    }


_ERROR_SCHEMA = _object({"error": _object(_ERROR_PARTS, others=False)}, others=False)
_ERROR = {
    "description": "An error, in OpenAI's form",
    "content": {"application/json": {"schema": _ERROR_SCHEMA}},
}
ERRORS: Responses = {"4XX": _ERROR, "5XX": _ERROR}
_EVENT = _object({"data": _TEXT})
ANSWER_OR_STREAM: Responses = {
    200: {
        "description": "The answer, or with stream its chunks and [DONE]",
        "content": {"application/json": {"schema": {}}, "text/event-stream": {"schema": _EVENT}},
    }
}
NUMBERS: Responses = {
    200: {
        "description": "The numbers, in the format that Accept asks for",
        "content": {
            "text/plain": {"schema": _TEXT},
            "application/openmetrics-text": {"schema": _TEXT},
        },
    }
}


def body_of(*fields: type[BaseModel]) -> dict[str, Any]:
    """``openapi_extra`` of a route: the body has the fields of one of these."""
    schemas = [_inlined(each.model_json_schema()) for each in fields]
    schema = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema without references: those of one body are not known to the whole document."""
    parts = schema.pop("$defs", {})

    def resolved(node: Any) -> Any:
        if isinstance(node, list):
            return [resolved(each) for each in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            return resolved(parts[node["$ref"].rpartition("/")[2]])
        return {name: resolved(each) for name, each in node.items()}

    whole: dict[str, Any] = resolved(schema)
    return whole
