"""The endpoint that Prometheus scrapes."""

from kwise.engine.server.call import Call
from kwise.engine.server.http.endpoint import Endpoint, Reply
from kwise.engine.server.metrics.collector import CONTENT_TYPE, exposition


async def _metrics(call: Call, _: object) -> Reply:
    return Reply(body=exposition(call.service), content_type=CONTENT_TYPE)


# Closed to callers without a token, because the names of models and the traffic are for insiders.
# Prometheus sends a token if it is told to.
ENDPOINTS = (
    Endpoint(
        method="GET",
        path="/metrics",
        handler=_metrics,
        summary="Return the metrics of the server in the text format of Prometheus",
        tag="server",
        response=str,
        always=True,
    ),
)
