"""The OpenAPI document describes what the server serves."""

import json
import re
import subprocess
import sys
from typing import Any

from kwise.engine.server.http.table import ENDPOINTS
from tests.engine.server.http.conftest import HttpServer


def test_the_document_has_each_endpoint_and_no_open_reference(http: HttpServer) -> None:
    reply = http.get("/openapi.json")
    document = reply.json
    described = {
        (method.upper(), path)
        for path, operations in document["paths"].items()
        for method in operations
    }
    served = {(endpoint.method, endpoint.path.replace(":path}", "}")) for endpoint in ENDPOINTS}
    assert served - described == {("GET", path) for path in ("/openapi.json", "/docs", "/metrics")}
    assert described <= served
    references = set(re.findall(r'"#/components/schemas/([^"]+)"', reply.body.decode()))
    assert references <= set(document["components"]["schemas"])
    for operations in document["paths"].values():
        for operation in operations.values():
            assert operation["summary"] and operation["tags"]
            assert "200" in operation["responses"]


def test_the_schema_of_a_reply_is_what_is_replied(http: HttpServer) -> None:
    schemas = http.get("/openapi.json").json["components"]["schemas"]
    reply = http.post("/v1/comparisons", {"prompt": "p", "responses": ["a", "b"]}).json
    assert_has_fields(reply, schemas["CompareResponse"], schemas)


def assert_has_fields(value: Any, schema: Any, schemas: Any) -> None:
    """Assert that objects have the fields of their schemas, all through the value."""
    if "$ref" in schema:
        schema = schemas[schema["$ref"].rsplit("/", 1)[1]]
    if isinstance(value, dict):
        assert set(schema.get("required", [])) <= value.keys() <= schema["properties"].keys()
        for name, inner in value.items():
            assert_has_fields(inner, schema["properties"][name], schemas)
    if isinstance(value, list):
        for inner in value:
            assert_has_fields(inner, schema["items"], schemas)


def test_the_page_says_where_its_script_comes_from(http: HttpServer) -> None:
    reply = http.get("/docs")
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    text, _, _ = reply.body.decode().partition("<script")
    assert "cdn.jsdelivr.net" in text and "openapi.json" in text


def test_a_server_without_the_option_loads_none_of_the_packages() -> None:
    program = """
import json, sys
import kwise.engine.server.serve, kwise.engine.server.command
print(json.dumps(sorted({"uvicorn", "starlette", "httptools", "anyio"} & sys.modules.keys())))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert json.loads(done.stdout) == []
