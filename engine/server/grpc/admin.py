"""`kwise.v1.AdminService`: change the models that the server serves."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from kwise.engine.ensemble import Ensemble
from kwise.engine.server.grpc.calls import Context, running_call
from kwise.engine.server.models.loader import Loader
from kwise.engine.server.models.source import (
    EnsembleSource,
    Source,
    is_directory,
    members_problem,
    name_problem,
)
from kwise.engine.server.service import RewardService
from kwise.errors import (
    ArtifactError,
    ArtifactRefused,
    ConfigError,
    InvalidRequest,
    UnknownModel,
)
from kwise.protos.kwise.v1 import admin_pb2 as pb
from kwise.protos.kwise.v1 import admin_pb2_grpc


class GrpcAdminService(admin_pb2_grpc.AdminServiceServicer):
    """The RPCs of the service. admin.proto is their documentation."""

    def __init__(self, service: RewardService, loader: Loader) -> None:
        self._service = service
        self._loader = loader

    async def ListModels(
        self, request: pb.ListModelsRequest, context: Context
    ) -> pb.ListModelsResponse:
        async with self._running(context):
            return pb.ListModelsResponse(models=map(self._loaded, self._service.models))

    async def LoadModel(
        self, request: pb.LoadModelRequest, context: Context
    ) -> pb.LoadModelResponse:
        async with self._running(context):
            if request.members:
                changed = await self._combine(request)
            else:
                source = self._source(request)
                with _refusals():
                    changed = await self._loader.replace(self._service, request.model, source)
            return pb.LoadModelResponse(model=self._loaded(request.model), changed=changed)

    async def UnloadModel(
        self, request: pb.UnloadModelRequest, context: Context
    ) -> pb.UnloadModelResponse:
        async with self._running(context):
            await self._loader.unload(self._service, request.model)
            return pb.UnloadModelResponse()

    @asynccontextmanager
    async def _running(self, context: Context) -> AsyncIterator[None]:
        """Count the call as running, and refuse it while the server drains."""
        async with running_call(self._service, context):
            self._service.check_not_draining()
            yield

    async def _combine(self, request: pb.LoadModelRequest) -> bool:
        """Serve an ensemble. Return False if it is served already."""
        if request.artifact:
            raise InvalidRequest("members", "the request has an artifact as well; give one of them")
        _check_name(request.model)
        names = tuple(request.members)
        if problem := members_problem(names):
            raise InvalidRequest("members", problem)
        served = self._service.models.get(request.model)
        if isinstance(served, Ensemble) and served.member_names == names:
            return False
        await self._loader.combine(
            self._service, EnsembleSource(name=request.model, member_names=names)
        )
        return True

    def _source(self, request: pb.LoadModelRequest) -> Source:
        """Return the artifact that a request asks for."""
        known = self._loader.source(request.model)
        if known is None:
            _check_name(request.model)
        if not request.artifact:
            if isinstance(self._service.models.get(request.model), Ensemble):
                raise InvalidRequest(
                    "model", f"{request.model!r} is an ensemble; load its members again instead"
                )
            if known is None:
                raise UnknownModel(request.model, list(self._service.models))
            return known
        path = Path(request.artifact)
        if not path.is_absolute():
            raise InvalidRequest(
                "artifact", f"it is {request.artifact[:200]!r}; it must be an absolute path"
            )
        if not is_directory(path):
            raise InvalidRequest(
                "artifact",
                f"the server has no directory {request.artifact[:200]!r}, or may not read it",
            )
        return Source(path=path, name=request.model)

    def _loaded(self, name: str) -> pb.LoadedModel:
        model, source = self._service.model(name), self._loader.source(name)
        info = self._service.model_info(name)
        return pb.LoadedModel(
            model=name,
            fingerprint=info.fingerprint,
            artifact=str(source.path) if source else "",
            members=model.member_names if isinstance(model, Ensemble) else (),
        )


def _check_name(name: str) -> None:
    if problem := name_problem(name):
        raise InvalidRequest("model", problem)


@contextmanager
def _refusals() -> Iterator[None]:
    """Raise an error of the request in place of one of the artifact or of the server's options."""
    try:
        yield
    except (ArtifactError, ConfigError) as error:
        raise ArtifactRefused(str(error)) from None
