"""Build the stand-in for CUDA: the libraries that onnxruntime-gpu's CUDA provider asks for.

The sources here have the functions that kwise's passes need. For every other function that the
provider imports, a stub is generated that fails and writes the function's name to the log. So a
newer wheel loads too, and a test says which function it calls.

    python tests/cuda/standin/build.py --wheel DIR --headers DIR --output DIR
"""

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

SOURCES = {
    "libcudart": ["record.cpp", "device.cpp", "memory.cpp", "streams.cpp"],
    "libcublas": ["blas.cpp"],
    "libcublasLt": ["blas_lt.cpp"],
    "libcurand": [],
    "libcuda": [],
}
"""Our sources for each library, by the library's name without version. The first has the log."""

_HERE = Path(__file__).parent
# Not supported, as cudaError_t. cuBLAS's status codes differ, but any but 0 is an error.
_NOT_SUPPORTED = 801


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the stand-in for CUDA.")
    parser.add_argument(
        "--wheel", type=Path, required=True, help="where pip installed onnxruntime-gpu"
    )
    parser.add_argument(
        "--headers", type=Path, required=True, help="where pip installed the headers of CUDA"
    )
    parser.add_argument("--output", type=Path, required=True, help="where the libraries go")
    options = parser.parse_args()
    if missing := [tool for tool in ("g++", "nm", "readelf") if shutil.which(tool) is None]:
        sys.exit(f"{', '.join(missing)} not found: install a C++ compiler (apt install g++)")
    provider = options.wheel / "onnxruntime/capi/libonnxruntime_providers_cuda.so"
    headers = next(options.headers.glob("nvidia/cu*/include"))
    options.output.mkdir(parents=True, exist_ok=True)
    build(provider, headers, options.output)


def build(provider: Path, headers: Path, output: Path) -> None:
    """Build one library for each that `provider` needs of CUDA, under the same name.

    Raises:
        KeyError: the provider needs a library that is not in `SOURCES`.
    """
    needed = re.findall(r"\[(libcu\w+\.so\.\d+)\]", _output("readelf", "-d", str(provider)))
    imported = _imported(provider)
    files = {name.partition(".")[0]: name for name in needed}
    log = files["libcudart"]
    for stem in sorted(files, key=list(SOURCES).index):
        name = files[stem]
        objects = [_compile(_HERE / source, headers, output) for source in SOURCES[stem]]
        defined = set(_symbols("--defined-only", objects)) if objects else set()
        stubs = output / f"{stem}_stubs.cpp"
        missing = [
            symbol
            for symbol, library in imported.items()
            if library == name and symbol not in defined
        ]
        stubs.write_text(_stubs(missing))
        objects.append(_compile(stubs, headers, output))
        # The provider asks for each function in a version of the library's name.
        versions = output / f"{stem}.map"
        versions.write_text(f"{name} {{ global: *; }};\n")
        links = [] if name == log else ["-L", str(output), f"-l:{log}", "-Wl,-rpath,$ORIGIN"]
        _output(
            "g++",
            "-shared",
            "-o",
            str(output / name),
            *map(str, objects),
            f"-Wl,-soname,{name}",
            f"-Wl,--version-script,{versions}",
            *links,
        )


def _imported(provider: Path) -> dict[str, str]:
    """Return the functions of CUDA that the provider imports, and the library of each."""
    imported = {}
    for symbol in _symbols("--undefined-only", [provider]):
        name, _, library = symbol.partition("@")
        if library.startswith("libcu"):
            imported[name] = library
        elif re.match(r"cu[A-Z]", name):  # the driver's functions have no version
            imported[name] = "libcuda.so.1"
    return imported


def _stubs(names: list[str]) -> str:
    functions = [
        f'int {name}(...) {{ stand_in_unexpected("{name}"); return {_NOT_SUPPORTED}; }}'
        for name in names
    ]
    return "\n".join(['#include "record.h"', 'extern "C" {', *functions, "}", ""])


def _compile(source: Path, headers: Path, output: Path) -> Path:
    target = output / f"{source.stem}.o"
    flags = ["-std=c++17", "-O1", "-fPIC", "-Wall", "-I", str(_HERE), "-isystem", str(headers)]
    _output("g++", *flags, "-c", str(source), "-o", str(target))
    return target


def _symbols(which: str, files: list[Path]) -> list[str]:
    lines = _output("nm", "--extern-only", *_dynamic(files), which, *map(str, files)).splitlines()
    return [line.split()[-1] for line in lines if line and not line.endswith(":")]


def _dynamic(files: list[Path]) -> list[str]:
    return ["--dynamic"] if files[0].suffix == ".so" else []


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout


if __name__ == "__main__":
    main()
