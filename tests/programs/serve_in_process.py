"""Run a server of ARTIFACT and the clients of two standard protocols in this one process.

Usage: python serve_in_process.py ARTIFACT clients-first|clients-last

The argument says when the client libraries are imported. Prints the shape of the rewards that
tritonclient receives, and the number of ranks that tei-client's messages hold.
"""

import asyncio
import sys
from pathlib import Path
from typing import Any


def import_clients() -> tuple[Any, Any, Any]:
    """Return the modules of tritonclient and tei-client that the program uses."""
    import tritonclient.grpc.aio as triton
    from tei_client.stubs import tei_pb2, tei_pb2_grpc

    return triton, tei_pb2, tei_pb2_grpc


async def main(artifact: Path, order: str) -> None:
    if order == "clients-first":
        import_clients()
    from kwise.engine.scorer import Scorer
    from kwise.engine.server.config import ServerConfig
    from kwise.engine.server.grpc.port import GrpcPort
    from kwise.engine.server.security.credentials import Credentials
    from kwise.engine.server.service import RewardService

    triton, tei_pb2, tei_pb2_grpc = import_clients()
    import grpc
    import numpy as np

    config = ServerConfig(port=0)
    port = GrpcPort(config, Credentials(config))
    service = RewardService([Scorer.load(artifact)])
    service.model().start()
    await port.start(service)
    async with triton.InferenceServerClient(port.address) as client:
        inputs = []
        for name, texts in (("prompt", ["Hello"]), ("responses", ["a", "b"])):
            tensor = triton.InferInput(name, [len(texts)], "BYTES")
            tensor.set_data_from_numpy(np.array([text.encode() for text in texts], np.object_))
            inputs.append(tensor)
        result = await client.infer("tiny", inputs)
    async with grpc.aio.insecure_channel(port.address) as channel:
        request = tei_pb2.RerankRequest(query="Hello", texts=["a", "b"])
        ranked = await tei_pb2_grpc.RerankStub(channel).Rerank(request)
    print(result.as_numpy("rewards").shape, len(ranked.ranks))  # noqa: T201
    await port.close(0)
    await service.stop()


asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
