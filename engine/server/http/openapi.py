"""The OpenAPI document of the endpoints, and a page to read it and try them out."""

import re
from collections.abc import Iterable, Sequence
from http import HTTPStatus
from typing import Any

import msgspec

from kwise.engine.server.call import Call
from kwise.engine.server.http.endpoint import Endpoint, Reply
from kwise.version import __version__

_REF = "#/components/schemas/{name}"
# The errors that every endpoint with a body may answer with.
_ERRORS_OF_BODIES = (
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
)
# A parameter of a path, with Starlette's type: "{model:path}".
_PARAMETER = re.compile(r"\{(\w+):\w+\}")
_HEADERS = [
    {
        "name": "kwise-client",
        "in": "header",
        "description": "The client that asks. The server shares its time evenly among clients.",
        "schema": {"type": "string"},
    },
    {
        "name": "kwise-timeout-s",
        "in": "header",
        "description": "Seconds after which the server gives up the request and answers 504.",
        "schema": {"type": "number", "exclusiveMinimum": 0},
    },
]
_TOKEN = {
    "type": "http",
    "scheme": "bearer",
    "description": "A token of the server's --token-file.",
}
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>kwise</title>
<link rel="stylesheet" href="https://cdn.jsdelivr.net/npm/swagger-ui-dist@5/swagger-ui.css">
</head>
<body>
<p>Your browser loads the viewer of this page, Swagger UI, from cdn.jsdelivr.net. If it has no
access to it, read <a href="openapi.json">openapi.json</a> with a viewer of your own.</p>
<div id="viewer"></div>
<script src="https://cdn.jsdelivr.net/npm/swagger-ui-dist@5/swagger-ui-bundle.js"></script>
<script>SwaggerUIBundle({url: "openapi.json", dom_id: "#viewer"})</script>
</body>
</html>
"""


def openapi_document(endpoints: Sequence[Endpoint]) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of `endpoints`."""
    types = dict.fromkeys(
        kind
        for endpoint in endpoints
        for kind in (endpoint.request, endpoint.response, endpoint.errors.body)
        if kind is not None
    )
    schemas, components = msgspec.json.schema_components(types, ref_template=_REF)
    schema_of = dict(zip(types, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        operations = paths.setdefault(_PARAMETER.sub(r"{\1}", endpoint.path), {})
        method = endpoint.method.lower()
        if method not in operations:
            dialects = [
                e for e in endpoints if (e.path, e.method) == (endpoint.path, endpoint.method)
            ]
            operations[method] = _operation(dialects, schema_of)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "kwise",
            "version": __version__,
            "description": "Rewards of responses to a prompt. docs/http.md has examples.",
        },
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": {"token": _TOKEN}},
        "security": [{}, {"token": []}],  # a server without --token-file asks for none
    }


def _operation(dialects: Sequence[Endpoint], schema_of: dict[Any, Any]) -> dict[str, Any]:
    """Return the operation of one method of a path, in all its dialects."""
    descriptions = [
        f"{dialect.tag}: {dialect.summary}. {dialect.description}".strip()
        if len(dialects) > 1
        else dialect.description
        for dialect in dialects
    ]
    requests = [dialect.request for dialect in dialects if dialect.request is not None]
    operation: dict[str, Any] = {
        "summary": " / ".join(dict.fromkeys(dialect.summary for dialect in dialects)),
        "description": "\n\n".join(filter(None, descriptions)),
        "tags": list(dict.fromkeys(dialect.tag for dialect in dialects)),
        "responses": {
            "200": _content((dialect.response for dialect in dialects), schema_of, "OK"),
            **_errors(dialects, schema_of),
        },
    }
    if parameters := _PARAMETER.findall(dialects[0].path):
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in parameters
        ]
    if dialects[0].is_open:
        operation["security"] = []
    if requests:
        operation["parameters"] = _HEADERS
        operation["requestBody"] = {"required": True, **_content(requests, schema_of)}
    return operation


def _errors(dialects: Sequence[Endpoint], schema_of: dict[Any, Any]) -> dict[str, Any]:
    """Return the error replies by status."""
    bodies: dict[HTTPStatus, list[Any]] = {}
    for dialect in dialects:
        statuses = dialect.error_statuses
        if not dialect.is_open:
            statuses += (HTTPStatus.UNAUTHORIZED,)
        if dialect.request is not None:
            statuses += _ERRORS_OF_BODIES
        for status in statuses:
            of_family = dialect.errors.http_statuses.get(status, status)
            # A health check answers with its own body, whatever the status.
            body = dialect.response if dialect.always else dialect.errors.body
            bodies.setdefault(of_family, []).append(body)
    return {
        str(status.value): _content(bodies[status], schema_of, status.phrase)
        for status in sorted(bodies)
    }


def _content(
    kinds: Iterable[Any], schema_of: dict[Any, Any], description: str = ""
) -> dict[str, Any]:
    schemas = [schema_of[kind] for kind in dict.fromkeys(kinds)]
    schema = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
    content: dict[str, Any] = {"content": {"application/json": {"schema": schema}}}
    return {"description": description, **content} if description else content


def documentation(endpoints: Sequence[Endpoint]) -> tuple[Endpoint, ...]:
    """Return the endpoints of the OpenAPI document about `endpoints` and of its page."""
    document: list[bytes] = []

    async def read(call: Call, _: object) -> Reply:
        if not document:  # made at the first request, because most servers never get one
            document.append(msgspec.json.encode(openapi_document(endpoints)))
        return Reply(body=document[0])

    async def page(call: Call, _: object) -> Reply:
        return Reply(body=_PAGE.encode(), content_type="text/html; charset=utf-8")

    return (
        Endpoint(
            method="GET",
            path="/openapi.json",
            handler=read,
            summary="Return the OpenAPI document",
            tag="server",
            response=dict[str, Any],
        ),
        Endpoint(
            method="GET",
            path="/docs",
            handler=page,
            summary="Show the OpenAPI document in a browser",
            tag="server",
            response=str,
        ),
    )
