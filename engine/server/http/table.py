"""The table of all HTTP endpoints."""

from kwise.engine.server.http import status
from kwise.engine.server.http.endpoint import Endpoint

# A request is compared with the paths in this order.
ENDPOINTS: tuple[Endpoint, ...] = (*status.ENDPOINTS,)
