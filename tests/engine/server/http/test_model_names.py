"""The ways in which a request over HTTP names its model."""

import dataclasses
from typing import Any

import msgspec
import pytest
from starlette.types import Receive, Scope, Send

from kwise.engine.precision import Precision
from kwise.engine.server.call import Call
from kwise.engine.server.http.endpoint import Reply
from kwise.engine.server.http.middleware.model_path import MODEL_NAME, ModelPath
from kwise.engine.server.http.status import ENDPOINTS
from kwise.engine.server.samples.scores import tei_dtype
from kwise.engine.server.service import RewardService
from kwise.errors import InvalidRequest, UnknownModel
from tests.sum_session import MANIFEST, sum_scorer


def serving(*names: str) -> RewardService:
    return RewardService(
        [sum_scorer(manifest=msgspec.structs.replace(MANIFEST, name=name)) for name in names]
    )


@pytest.mark.parametrize(
    ("raw", "path", "name"),
    [
        ("/models/a/score", "/score", "a"),
        ("/models/a%2Fb/v1/score", "/v1/score", "a/b"),
        ("/%6dodels/v1/score", "/score", "v1"),
        ("/models/a/v1/models/x%2Fy", "/v1/models/x/y", "a"),
        ("/models%2Fa/score", "/models/a/score", None),
        ("/models/a", "/models/a", None),
        ("/models//score", "/models//score", None),
        ("/v1/models/a", "/v1/models/a", None),
    ],
)
async def test_the_path_names_the_model(raw: str, path: str, name: str | None) -> None:
    seen: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)

    decoded = raw.replace("%2F", "/").replace("%6d", "m")
    unused: Any = None
    await ModelPath(app)({"path": decoded, "raw_path": raw.encode()}, unused, unused)
    assert (seen[0]["path"], seen[0].get(MODEL_NAME)) == (path, name)


def test_a_clients_placeholder_is_a_name_if_a_model_is_called_so() -> None:
    call = Call(service=serving("a", "default"), client="")
    assert call.without_placeholder("default", "default") == "default"
    assert call.without_placeholder("model", "model") is None
    assert call.without_placeholder("other", "model") == "other"
    by_address = dataclasses.replace(call, model="a")
    assert by_address.without_placeholder("default", "default") is None
    with pytest.raises(InvalidRequest, match="the address names 'a'"):
        by_address.model_named(by_address.without_placeholder("default", "model"))


async def answer(path: str, call: Call) -> Any:
    (endpoint,) = (endpoint for endpoint in ENDPOINTS if endpoint.path == path)
    return await endpoint.handler(call, {})


async def test_what_describes_the_server_does_not_need_the_first_model() -> None:
    service = serving("a", "b")
    await service.remove("a")
    listed = await answer("/v1/models", Call(service=service, client=""))
    assert [card.id for card in listed.data] == ["b"]
    health = await answer("/health", Call(service=service, client="", model="b"))
    assert isinstance(health, Reply)
    with pytest.raises(UnknownModel):
        await answer("/health", Call(service=service, client="", model="a"))


def test_an_ensemble_of_several_precisions_has_their_names_in_tei() -> None:
    assert tei_dtype("int8, fp32") == "int8, float32"
    assert [tei_dtype(precision.value) for precision in Precision]
