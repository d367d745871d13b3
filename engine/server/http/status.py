"""Endpoints that describe the server: its health, and the model that it serves."""

import time
from collections.abc import Mapping
from dataclasses import asdict
from http import HTTPStatus

import msgspec

from kwise.engine.served_model import ServedModel
from kwise.engine.server.call import Call
from kwise.engine.server.http.bodies.openai_errors import OPENAI_ERRORS
from kwise.engine.server.http.endpoint import Endpoint, Reply
from kwise.engine.server.samples.scores import LABEL, tei_dtype
from kwise.errors import UnknownModel
from kwise.version import __version__


class Health(msgspec.Struct):
    """The state of the server: "SERVING", or "NOT_SERVING" while it shuts down."""

    status: str


class CountersBody(msgspec.Struct, kw_only=True):
    """kwise.v1.Counters: work that the engine has done since it started."""

    model_passes: int
    sequences: int
    rows: int
    unshared_rows: int
    cache_hits: int
    joined: int
    rejected_groups: int
    abandoned: int
    reused_rows: int
    busy_s: float
    idle_with_work_s: float
    shared_hits: int
    shared_misses: int
    shared_unanswered: int
    shared_joined: int
    shared_timeouts: int
    shared_errors: int
    shared_rubbish: int
    shared_stored: int
    shared_dropped: int
    answered_groups: int
    cached_groups: int
    failed_groups: int
    cache_misses: int
    truncated_sequences: int
    dropped_tokens: int
    control_tokens: int
    failed_sequences: int


class ModelBody(msgspec.Struct, kw_only=True):
    """kwise.v1.GetModelResponse: the model that is served, and its limits."""

    model: str
    fingerprint: str
    layout: str
    precision: str
    runtime: str
    max_tokens: int
    max_batch_tokens: int
    overlong: str
    control_tokens: str
    reward_mean: float
    reward_std: float
    counters: CountersBody
    max_responses: int
    max_pairs: int
    num_members: int
    member_means: tuple[float, ...]
    member_stds: tuple[float, ...]
    queue_tokens: int
    queue_sequences: int
    max_queue_tokens: int
    num_devices: int


class ModelCard(msgspec.Struct, kw_only=True):
    """A model of OpenAI's list of models, with vLLM's `max_model_len`."""

    id: str
    object: str = "model"
    created: int
    owned_by: str = "kwise"
    max_model_len: int


class ModelList(msgspec.Struct, kw_only=True):
    """OpenAI's list of models: those that are served."""

    object: str = "list"
    data: list[ModelCard]


class Reranker(msgspec.Struct, kw_only=True):
    """The labels of TEI's re-ranker, which is a classifier with one label."""

    id2label: dict[str, str]
    label2id: dict[str, int]


class ModelType(msgspec.Struct, kw_only=True):
    """The type of the model in TEI's form, which has one field per type."""

    reranker: Reranker


class Info(msgspec.Struct, kw_only=True):
    """TEI's description of a server. `model_sha` is the fingerprint of the artifact."""

    model_id: str
    model_sha: str
    model_dtype: str
    model_type: ModelType
    max_concurrent_requests: int
    max_input_length: int
    max_batch_tokens: int
    max_batch_requests: int | None = None
    max_client_batch_size: int
    auto_truncate: bool
    tokenization_workers: int
    version: str
    sha: str | None = None
    docker_label: str | None = None


async def _model(call: Call, _: object) -> ModelBody:
    return msgspec.convert(asdict(call.service.model_info(call.model)), ModelBody)


async def _models(call: Call, _: object) -> ModelList:
    call.service.check_not_draining()
    return ModelList(data=[_card(model) for model in call.service.models.values()])


async def _named_model(call: Call, parameters: Mapping[str, str]) -> ModelCard:
    return _card(call.service.model(parameters["model"]))


def _card(model: ServedModel) -> ModelCard:
    return ModelCard(id=model.name, created=_STARTED_S, max_model_len=model.max_tokens)


async def _info(call: Call, _: object) -> Info:
    info, config = call.service.model_info(call.model), call.served().config
    return Info(
        model_id=info.model,
        model_sha=info.fingerprint,
        model_dtype=tei_dtype(info.precision),
        model_type=ModelType(reranker=Reranker(id2label={"0": LABEL}, label2id={LABEL: 0})),
        # The queue is limited by tokens. A request has at least one.
        max_concurrent_requests=config.max_queue_tokens,
        max_input_length=info.max_tokens,
        max_batch_tokens=info.max_batch_tokens,
        max_client_batch_size=info.max_responses,
        auto_truncate=info.overlong != "reject",
        tokenization_workers=config.tokenizer_threads,
        version=__version__,
    )


async def _health(call: Call, _: object) -> Reply:
    if call.model and call.model not in call.service.models:
        raise UnknownModel(call.model, list(call.service.models))
    if call.service.draining.is_set():
        return Reply(body=Health("NOT_SERVING"), http_status=HTTPStatus.SERVICE_UNAVAILABLE)
    return Reply(body=Health("SERVING"))


async def _alive(call: Call, _: object) -> Health:
    return Health("SERVING")


_TAG = "server"
_STARTED_S = int(time.time())
ENDPOINTS = (
    *(
        Endpoint(
            method="GET",
            path=path,
            handler=_health,
            summary="Report the health of the server: 200, or 503 while it shuts down",
            tag=_TAG,
            response=Health,
            error_statuses=(HTTPStatus.SERVICE_UNAVAILABLE,),
            always=True,
            is_open=True,
        )
        for path in ("/health", "/readyz", "/ping")
    ),
    Endpoint(
        method="GET",
        path="/livez",
        handler=_alive,
        summary="Report that the process runs: 200",
        tag=_TAG,
        response=Health,
        always=True,
        is_open=True,
    ),
    Endpoint(
        method="GET",
        path="/v1/model",
        handler=_model,
        summary="Describe the first model, its limits, and the work done so far",
        description="JSON of kwise.v1.RewardService.GetModel.",
        tag="kwise",
        response=ModelBody,
        error_statuses=(HTTPStatus.SERVICE_UNAVAILABLE,),
    ),
    Endpoint(
        method="GET",
        path="/v1/models",
        handler=_models,
        summary="List the models that are served",
        tag="OpenAI",
        response=ModelList,
        error_statuses=(HTTPStatus.SERVICE_UNAVAILABLE,),
    ),
    Endpoint(
        method="GET",
        path="/v1/models/{model:path}",
        handler=_named_model,
        summary="Describe the model of this name, if it is served",
        tag="OpenAI",
        response=ModelCard,
        error_statuses=(HTTPStatus.NOT_FOUND, HTTPStatus.SERVICE_UNAVAILABLE),
        errors=OPENAI_ERRORS,
    ),
    Endpoint(
        method="GET",
        path="/info",
        handler=_info,
        summary="Describe the server",
        tag="Text Embeddings Inference",
        response=Info,
        error_statuses=(HTTPStatus.SERVICE_UNAVAILABLE,),
    ),
)
