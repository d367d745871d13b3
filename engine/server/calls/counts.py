"""Counts of the calls that have ended, by what they asked for and how they ended.

Labels have few values: a method is an entry of the table of endpoints or an RPC, a model is one
that is served, and a status is one of gRPC's. Nothing that a caller chooses becomes a label.
"""

from collections import Counter

from kwise.engine.server.calls.running_call import CallKind, RunningCall

# Protocol, method, model, status.
CallLabels = tuple[str, str, str, str]


class CallCounts:
    """Counts calls. An observer of a service: see `BaseRewardService.observers`.

    Attributes:
        requests: calls with one reply, and the requests of streams.
        streams: streams as a whole.
    """

    def __init__(self) -> None:
        self.requests: Counter[CallLabels] = Counter()
        self.streams: Counter[CallLabels] = Counter()

    def __call__(self, call: RunningCall) -> None:
        """Count a call that has ended."""
        counts = self.streams if call.kind is CallKind.STREAM else self.requests
        status = "UNKNOWN" if call.status is None else call.status.name
        counts[call.protocol.value, call.method, call.model, status] += 1
