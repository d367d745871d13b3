"""Generate the Python modules of protos/kwise/v1 next to their .proto files.

Usage: python protos/generate.py [OUT]

protoc writes `from kwise.v1 import reward_pb2`, because that is the path of the proto package. The
modules live in `kwise.protos.kwise.v1`, so that import is made relative. Nothing else is changed.
"""

import os
import sys
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).parent
PROTOS = sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*.proto"))


def generate(out: Path) -> None:
    """Write `*_pb2.py`, `*_pb2.pyi`, `*_pb2_grpc.py` and `*_pb2_grpc.pyi` below `out`.

    Raises:
        RuntimeError: protoc refused a file; its message is on stderr.
    """
    # protoc looks for its plugins on the PATH, and the virtual environment may not be activated.
    os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    includes = [f"-I{ROOT}", f"-I{Path(protoc.__file__).parent / '_proto'}"]
    outputs = [f"--{kind}_out={out}" for kind in ("python", "pyi", "grpc_python", "mypy_grpc")]
    if protoc.main(["protoc", *includes, *outputs, *PROTOS]) != 0:
        raise RuntimeError(f"protoc failed on {PROTOS}")
    for path in out.rglob("*_pb2_grpc.py*"):
        text = path.read_text()
        text = text.replace("from kwise.v1 import", "from . import")
        text = text.replace("import kwise.v1.reward_pb2\n", "from . import reward_pb2\n")
        text = text.replace("from kwise.v1 import reward_pb2", "from . import reward_pb2")
        text = text.replace("kwise.v1.reward_pb2.", "reward_pb2.")
        path.write_text(text)


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)
