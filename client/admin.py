"""A client of `kwise.v1.AdminService`, which changes the models of a running server."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from kwise.client.channel import DEFAULT_TIMEOUT_S, check_target, check_timeout
from kwise.client.credentials import Credentials
from kwise.client.messages import from_rpc_error
from kwise.client.open_channel import open_channel
from kwise.protos.kwise.v1 import admin_pb2 as pb
from kwise.protos.kwise.v1 import admin_pb2_grpc


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model that a server serves.

    Attributes:
        model: the name by which requests ask for it.
        fingerprint: the identity of the model, a SHA-256 in hex.
        artifact: the directory on the server that it was loaded from; "" for an ensemble.
        members: the names of the members of an ensemble; empty for an artifact.
    """

    model: str
    fingerprint: str
    artifact: str
    members: tuple[str, ...]


class AdminClient:
    """Loads and unloads models of one server.

    with AdminClient("localhost:50051", credentials=Credentials(token=...)) as admin:
        admin.load_model("reward", "/models/reward-2")

    Args:
        target: HOST:PORT or a URI of gRPC.
        timeout_s: the longest time of a call, in seconds. Loading a large model takes minutes.
        credentials: a token of the server's `--admin-token-file`, and TLS; None for those of the
            environment.

    Raises:
        InvalidRequest: the target is not an address, or a file of the credentials cannot be used.
    """

    def __init__(
        self,
        target: str,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        credentials: Credentials | None = None,
    ) -> None:
        credentials = credentials or Credentials.from_environment()
        self._timeout_s = check_timeout("timeout_s", timeout_s)
        self._metadata = credentials.metadata
        self._target = check_target("target", target)
        self._channel = open_channel(target, credentials.channel_credentials())
        self._stub: Any = admin_pb2_grpc.AdminServiceStub(self._channel)

    def __enter__(self) -> "AdminClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def list_models(self) -> list[LoadedModel]:
        """Return the models that are served, in the order in which they were added.

        Raises:
            RewardServiceError: the call failed.
        """
        reply = self._call("ListModels", pb.ListModelsRequest())
        return [_loaded(model) for model in reply.models]

    def load_model(
        self, model: str, artifact: str = "", *, members: Sequence[str] = ()
    ) -> LoadedModel:
        """Serve an artifact or an ensemble under a name, in place of the one of that name if any.

        Args:
            model: the name.
            artifact: a directory on the server; "" to read the one again that the model was loaded
                from.
            members: names of models that are served, for an ensemble.

        Raises:
            RewardServiceError: the call failed; FAILED_PRECONDITION if the artifact is refused.
        """
        request = pb.LoadModelRequest(model=model, artifact=artifact, members=members)
        return _loaded(self._call("LoadModel", request).model)

    def unload_model(self, model: str) -> None:
        """Stop serving a model. Return once it has answered its requests.

        Raises:
            RewardServiceError: the call failed; NOT_FOUND if the server does not serve the model.
        """
        self._call("UnloadModel", pb.UnloadModelRequest(model=model))

    def _call(self, method: str, request: Any) -> Any:
        try:
            return getattr(self._stub, method)(
                request, timeout=self._timeout_s, metadata=self._metadata
            )
        except grpc.RpcError as error:
            raise from_rpc_error(error, self._target) from error


def _loaded(message: pb.LoadedModel) -> LoadedModel:
    return LoadedModel(
        model=message.model,
        fingerprint=message.fingerprint,
        artifact=message.artifact,
        members=tuple(message.members),
    )
