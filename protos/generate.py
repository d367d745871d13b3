"""Generate Python modules next to the .proto files below protos/.

Usage: python protos/generate.py [OUT]

protoc writes `from kwise.v1 import reward_pb2`, because that is the path of the proto package. The
modules live in `kwise.protos.kwise.v1`, so that import is made relative. The messages of protocols
that kwise did not define go into a descriptor pool of their own; see `private_pool.py`.
"""

import os
import re
import sys
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).parent
PROTOS = sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*.proto"))

_DEFAULT_POOL = "_descriptor_pool.Default()"


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
    for proto in PROTOS:
        stem = out / proto.removesuffix(".proto")
        package, module = ".".join(stem.relative_to(out).parts[:-1]), f"{stem.name}_pb2"
        for ending in ("_grpc.py", "_grpc.pyi"):
            path = stem.with_name(module + ending)
            path.write_text(_relative(path.read_text(), package, module))
        if not package.startswith("kwise."):
            path = stem.with_name(f"{module}.py")
            path.write_text(_in_private_pool(path.read_text()))


def _relative(text: str, package: str, module: str) -> str:
    """Import `module` relatively, and name it without its package."""
    text = text.replace(f"from {package} import {module}", f"from . import {module}")
    text = text.replace(f"import {package}.{module}\n", f"from . import {module}\n")
    return re.sub(rf"\b{re.escape(package)}\.{module}\.", f"{module}.", text)


def _in_private_pool(text: str) -> str:
    assert text.count(_DEFAULT_POOL) == 1
    text = text.replace(_DEFAULT_POOL, "_private_pool.POOL")
    line = "from google.protobuf import descriptor_pool as _descriptor_pool\n"
    assert line in text
    return text.replace(line, "from kwise.protos import private_pool as _private_pool\n")


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)
