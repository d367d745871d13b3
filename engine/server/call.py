"""The context of one request, whatever protocol it came in."""

from dataclasses import dataclass

from kwise.engine.served_model import ServedModel
from kwise.engine.server.service import RewardService
from kwise.errors import InvalidRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """The context of one request.

    Attributes:
        service: the service that answers it.
        client: the client that asks, for `Group.client`: the name in the request, or else the
            address of the connection.
        model: the model that the address of the request names; "" if it names none.
    """

    service: RewardService
    client: str
    model: str = ""

    def without_placeholder(self, name: str, placeholder: str) -> str | None:
        """Return the name of a model in a body; None if it is what clients send without a name.

        Args:
            name: what the body says.
            placeholder: the name that clients of the protocol send if they are given none. If a
                model of that name is served, the body means it, unless the address names another.
        """
        is_name = name != placeholder or (not self.model and name in self.service.models)
        return name if is_name else None

    def model_named(self, name: str | None = None) -> str:
        """Return the name of the model that must answer; "" for the first that was loaded.

        Args:
            name: what the body of the request says; None or "" if it says nothing.

        Raises:
            InvalidRequest: body and address name two models.
        """
        if name and self.model and name != self.model:
            raise InvalidRequest(
                "model",
                f"it is {name[:100]!r}, and the address names {self.model[:100]!r}",
                is_quoting=True,
            )
        return name or self.model

    def served(self, name: str | None = None) -> ServedModel:
        """Return the model that must answer. `name` is as in `model_named`.

        Raises:
            InvalidRequest: body and address name two models.
            UnknownModel: the model is not served here.
            Unavailable: the service drains.
        """
        return self.service.model(self.model_named(name))
