"""The RPCs of `inference.GRPCInferenceService`."""

import asyncio
from collections.abc import AsyncIterator
from typing import NoReturn

import grpc

from kwise import __version__
from kwise.engine.server.grpc.calls import (
    Context,
    client_of,
    model_of,
    named_in_metadata,
    running_call,
)
from kwise.engine.server.grpc.inference import description
from kwise.engine.server.grpc.inference.parameters import NO_SHARED_MEMORY, Parameters
from kwise.engine.server.grpc.inference.reply import from_scored_group, requested_outputs
from kwise.engine.server.grpc.inference.request import to_group
from kwise.engine.server.grpc.inference.tensors import MODEL_VERSION
from kwise.engine.server.grpc.stream import RequestStream
from kwise.engine.server.service import RewardService
from kwise.errors import DeadlineExceeded, InvalidRequest, KwiseError, UnknownModel
from kwise.protos.inference import inference_pb2 as pb
from kwise.protos.inference import inference_pb2_grpc
from kwise.types import ModelInfo

_NO_REPOSITORY = "kwise.v1.AdminService loads and unloads models (--admin-token-file)"
_NO_SETTINGS = "this server does not have these settings"


class GrpcInferenceService(inference_pb2_grpc.GRPCInferenceServiceServicer):
    """The Open Inference Protocol. See inference.proto and docs/grpc-protocols.md."""

    def __init__(self, service: RewardService) -> None:
        self._service = service

    # Health

    async def ServerLive(
        self, request: pb.ServerLiveRequest, context: Context
    ) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(
        self, request: pb.ServerReadyRequest, context: Context
    ) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=not self._service.draining.is_set())

    async def ModelReady(
        self, request: pb.ModelReadyRequest, context: Context
    ) -> pb.ModelReadyResponse:
        try:
            self._model(context, request.name, request.version)
        except KwiseError:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=True)

    # Description

    async def ServerMetadata(
        self, request: pb.ServerMetadataRequest, context: Context
    ) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(
            name="kwise", version=__version__, extensions=description.EXTENSIONS
        )

    async def ModelMetadata(
        self, request: pb.ModelMetadataRequest, context: Context
    ) -> pb.ModelMetadataResponse:
        async with running_call(self._service, context):
            return description.metadata(self._model(context, request.name, request.version))

    async def ModelConfig(
        self, request: pb.ModelConfigRequest, context: Context
    ) -> pb.ModelConfigResponse:
        async with running_call(self._service, context):
            info = self._model(context, request.name, request.version)
            return pb.ModelConfigResponse(
                config=description.config(info, self._service.model(info.model))
            )

    async def ModelStatistics(
        self, request: pb.ModelStatisticsRequest, context: Context
    ) -> pb.ModelStatisticsResponse:
        async with running_call(self._service, context):
            info = self._model(context, request.name, request.version)
            model = description.statistics(info, self._service.model(info.model))
            return pb.ModelStatisticsResponse(model_stats=[model])

    async def RepositoryIndex(
        self, request: pb.RepositoryIndexRequest, context: Context
    ) -> pb.RepositoryIndexResponse:
        async with running_call(self._service, context):
            if request.repository_name:
                raise InvalidRequest("repository_name", "leave it empty; there is one repository")
            self._service.check_not_draining()
            models = (
                pb.RepositoryIndexResponse.ModelIndex(
                    name=name, version=MODEL_VERSION, state="READY"
                )
                for name in self._service.models
            )
            return pb.RepositoryIndexResponse(models=models)

    # Inference

    async def ModelInfer(
        self, request: pb.ModelInferRequest, context: Context
    ) -> pb.ModelInferResponse:
        async with running_call(self._service, context):
            name = model_of(request.model_name, named_in_metadata(context))
            return await self._infer(request, client_of(context), name)

    async def ModelStreamInfer(  # type: ignore[override]  # the stub knows only iterators
        self, request_iterator: AsyncIterator[pb.ModelInferRequest], context: Context
    ) -> None:
        """Answer in order, because tritonclient does not say which request an error belongs to."""
        client, in_metadata = client_of(context), named_in_metadata(context)

        async def answer(request: pb.ModelInferRequest) -> pb.ModelStreamInferResponse:
            try:
                with self._service.streamed_request():
                    name = model_of(request.model_name, in_metadata)
                    reply = await self._infer(request, client, name)
            except KwiseError as error:  # the stream goes on
                reply = pb.ModelInferResponse(id=request.id)
                reply.parameters["status"].string_param = error.status.name
                return pb.ModelStreamInferResponse(error_message=str(error), infer_response=reply)
            # Clients of decoupled models read here that a request is answered.
            reply.parameters["triton_final_response"].bool_param = True
            return pb.ModelStreamInferResponse(infer_response=reply)

        async with running_call(self._service, context):
            await RequestStream(
                context, pb.ModelInferRequest, answer, self._service.draining, in_order=True
            ).run()

    async def _infer(
        self, request: pb.ModelInferRequest, client: str, name: str
    ) -> pb.ModelInferResponse:
        self._info(name, request.model_version)
        parameters = Parameters.of(request)
        timeout_us = parameters.timeout_us
        try:
            async with asyncio.timeout(None if timeout_us is None else timeout_us / 1e6):
                group = await to_group(
                    request, self._service.limits, priority=parameters.priority, client=client
                )
                # Without a pause before the call of the model: it may be replaced in a pause, by
                # one with another number of members.
                info = self._info(name, request.model_version)
                outputs = requested_outputs(request, info.num_members)
                scored = await self._service.score(group, name)
        except TimeoutError:
            raise DeadlineExceeded("parameters.timeout", f"{timeout_us} microseconds") from None
        return from_scored_group(scored, outputs, request.id)

    def _model(self, context: Context, name: str, version: str) -> ModelInfo:
        """Describe the model that a call names. Raises the errors of `model_of` and `_info`."""
        return self._info(model_of(name, named_in_metadata(context)), version)

    def _info(self, name: str, version: str) -> ModelInfo:
        """Describe the model of this name and version; empty strings stand for the first one.

        Raises:
            UnknownModel: it is not served here.
            Unavailable: the server drains.
        """
        info = self._service.model_info(name)
        if version not in ("", MODEL_VERSION):
            raise UnknownModel(
                f"{name}, version {version}", [f"{info.model}, version {MODEL_VERSION}"]
            )
        return info

    # RPCs that a server of one reward model does not support

    async def RepositoryModelLoad(
        self, request: pb.RepositoryModelLoadRequest, context: Context
    ) -> NoReturn:
        await _unimplemented(context, _NO_REPOSITORY)

    async def RepositoryModelUnload(
        self, request: pb.RepositoryModelUnloadRequest, context: Context
    ) -> NoReturn:
        await _unimplemented(context, _NO_REPOSITORY)

    async def SystemSharedMemoryStatus(
        self, request: pb.SystemSharedMemoryStatusRequest, context: Context
    ) -> NoReturn:
        await _unimplemented(context, NO_SHARED_MEMORY)

    async def SystemSharedMemoryRegister(
        self, request: pb.SystemSharedMemoryRegisterRequest, context: Context
    ) -> NoReturn:
        await _unimplemented(context, NO_SHARED_MEMORY)

    async def SystemSharedMemoryUnregister(
        self, request: pb.SystemSharedMemoryUnregisterRequest, context: Context
    ) -> NoReturn:
        await _unimplemented(context, NO_SHARED_MEMORY)

    async def CudaSharedMemoryStatus(
        self, request: pb.CudaSharedMemoryStatusRequest, context: Context
    ) -> NoReturn:
        await _unimplemented(context, NO_SHARED_MEMORY)

    async def CudaSharedMemoryRegister(
        self, request: pb.CudaSharedMemoryRegisterRequest, context: Context
    ) -> NoReturn:
        await _unimplemented(context, NO_SHARED_MEMORY)

    async def CudaSharedMemoryUnregister(
        self, request: pb.CudaSharedMemoryUnregisterRequest, context: Context
    ) -> NoReturn:
        await _unimplemented(context, NO_SHARED_MEMORY)

    async def TraceSetting(self, request: pb.TraceSettingRequest, context: Context) -> NoReturn:
        await _unimplemented(context, _NO_SETTINGS)

    async def LogSettings(self, request: pb.LogSettingsRequest, context: Context) -> NoReturn:
        await _unimplemented(context, _NO_SETTINGS)


async def _unimplemented(context: Context, problem: str) -> NoReturn:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, problem)
