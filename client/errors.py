"""The error of a call, a group or a response that a server did not score."""

from kwise.errors import KwiseError, Status


class RewardServiceError(KwiseError):
    """A call, a group or a response that the server did not score.

    One class stands for every status, because gRPC itself sets some, such as DEADLINE_EXCEEDED.

    Attributes:
        status: the gRPC status; UNKNOWN if `code` is not a name that gRPC defines.
        code: the name of the status, as the server sent it.
        message: the server's message, without code and address.
        response: the index of the wrong response; None if the error is not about one response.
        over_limit: True if the conversation has more tokens or characters than the server's limit.
        target: the server's address if a whole call failed; "" if a group or a response did.
        retry_after_s: the time to wait before trying again, in seconds; None if the server did not
            say.
    """

    status = Status.UNKNOWN

    def __init__(
        self,
        code: str,
        message: str,
        *,
        target: str = "",
        retry_after_s: float | None = None,
        response: int | None = None,
        over_limit: bool = False,
    ) -> None:
        super().__init__(f"{code} at {target}: {message}" if target else f"{code}: {message}")
        self.status = Status.named(code)
        self.code = code
        self.message = message
        self.target = target
        self.retry_after_s = retry_after_s
        self.response = response
        self.over_limit = over_limit
