"""The table of all HTTP endpoints."""

from kwise.engine.server.http import rewards, scrape, status
from kwise.engine.server.http.bodies import table as bodies
from kwise.engine.server.http.endpoint import Endpoint
from kwise.engine.server.http.openapi import documentation

# A request is compared with the paths in this order.
_DESCRIBED: tuple[Endpoint, ...] = (
    *rewards.ENDPOINTS,
    *bodies.ENDPOINTS,
    *status.ENDPOINTS,
)
ENDPOINTS: tuple[Endpoint, ...] = (
    *_DESCRIBED,
    *scrape.ENDPOINTS,  # a text, which the OpenAPI document of JSON endpoints does not describe
    *documentation(_DESCRIBED),
)
