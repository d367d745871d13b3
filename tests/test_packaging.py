"""The package as users get it: a plain clone, the sdist, the wheel, and the extras."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import grimp
import pytest

import kwise
from tests.real_data import ROOT

# The folders that kwise/ links to, each with the extras that its imports need, optional ones too.
FOLDERS: dict[str, list[str]] = {
    "bulk": ["engine", "openvino", "data"],
    "client": [],
    "cluster": ["ray", "openvino", "redis", "tracing"],
    "engine": ["engine", "openvino", "redis", "tracing"],
    "evaluation": ["eval", "openvino", "qlora", "data", "redis"],
    "export": ["export", "openvino", "qlora", "data", "redis"],
    "train": ["train", "qlora", "data"],
    "benchmarks": ["bench", "openvino", "qlora", "data", "redis"],
    "protos": ["dev"],
    "rl": [],
}
# An adapter is imported by its library, which is therefore there. No extra installs it: most of
# these ask for packages that exclude kwise's or each other's.
ADAPTED = {"openrlhf", "skyrl_gym", "swift", "trl", "verl"}
# What was measured belongs to the repository; no program reads it.
RESULTS = "kwise/benchmarks/results/"
ENDINGS = {".py", ".pyi", ".proto", ".jsonl", ".jinja", ".yaml"}


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the working tree without ignored files, as `git clone` would make it."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    path = tmp_path_factory.mktemp("clone") / "kwise"
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        source, target = ROOT / name, path / name
        if source.is_symlink() or source.exists():  # else it was deleted and is not committed yet
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)
    return path


@pytest.fixture(scope="module")
def built(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the sdist, and the wheel built from it."""
    path = tmp_path_factory.mktemp("built")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(path), str(clone)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return path


def files_of_the_package(clone: Path) -> list[str]:
    """Return the names that the wheel must have, by what lies in the folders of the clone."""
    # rglob does not follow the links.
    own = [
        path
        for path in (clone / "kwise").rglob("*")
        if path.suffix in ENDINGS or path.name == "py.typed"
    ]
    named = [str(path.relative_to(clone)) for path in own]
    for folder in FOLDERS:
        inside = (path for path in (clone / folder).rglob("*") if path.suffix in ENDINGS)
        named += [f"kwise/{path.relative_to(clone)}" for path in inside]
    return sorted(name for name in named if not name.startswith(RESULTS))


def python(*arguments: str, cwd: Path) -> str:
    """Run Python without site-packages or PYTHONPATH, and return its standard output.

    Without site-packages it cannot see the kwise that is installed for the tests.
    """
    command = [sys.executable, "-S", *arguments]
    done = subprocess.run(command, cwd=cwd, env={}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


# A plain clone


def test_folders_of_the_package_are_all_listed_here() -> None:
    links = {path.name for path in (ROOT / "kwise").iterdir() if path.is_symlink()}
    assert links == set(FOLDERS)
    for name in links:
        assert (ROOT / "kwise" / name).readlink() == Path("..") / name


def test_the_command_runs_from_a_clone_that_is_not_installed(clone: Path) -> None:
    assert python("-m", "kwise", "--version", cwd=clone) == f"kwise {kwise.__version__}\n"
    assert "serve" in python("-m", "kwise", "--help", cwd=clone)
    assert "validate" in python("-m", "kwise", "data", "--help", cwd=clone)
    where = python("-c", "import kwise; print(kwise.__file__)", cwd=clone)
    assert Path(where.strip()) == clone / "kwise" / "__init__.py"


def test_the_engines_config_needs_the_standard_library_only(clone: Path) -> None:
    python("-c", "import kwise.engine.config", cwd=clone)


def test_the_clients_come_from_the_package_itself_and_load_no_engine() -> None:
    program = (
        "import sys; from kwise import AsyncRewardClient, RewardClient, __version__; "
        "print({name.split('.')[0] for name in sys.modules}"
        " & {'numpy', 'onnxruntime', 'tokenizers', 'torch', 'transformers'})"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "set()\n"), done.stderr


# sdist and wheel


def test_the_wheel_has_each_file_of_the_package_once_and_nothing_else(
    clone: Path, built: Path
) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        names = sorted(n for n in opened.namelist() if ".dist-info/" not in n)
    assert names == files_of_the_package(clone)
    assert {
        "kwise/py.typed",
        "kwise/export/conversations.jsonl",
        "kwise/train/launch/fsdp.yaml",
    } <= {*names}
    assert wheel.name == f"kwise-{kwise.__version__}-py3-none-any.whl"


def test_a_copy_without_links_installs_the_same_files(clone: Path, tmp_path: Path) -> None:
    """pip unpacks GitHub's zip files, and git clones on Windows, to files with the links' text."""
    copy = shutil.copytree(clone, tmp_path / "copy", symlinks=True)
    for name in FOLDERS:
        (copy / "kwise" / name).unlink()
        (copy / "kwise" / name).write_text(f"../{name}")
    command = [
        sys.executable,
        "-m",
        "build",
        "--no-isolation",
        "--wheel",
        "--outdir",
        str(tmp_path),
    ]
    done = subprocess.run([*command, str(copy)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        names = sorted(n for n in opened.namelist() if ".dist-info/" not in n)
    assert names == files_of_the_package(clone)


def test_the_sdist_has_real_files_where_the_repository_has_links(clone: Path, built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as opened:
        members = opened.getmembers()
    assert [member.name for member in members if not (member.isfile() or member.isdir())] == []
    names = sorted(member.name.partition("/")[2] for member in members if member.isfile())
    about = {"LICENSE", "MANIFEST.in", "PKG-INFO", "README.md"}
    about |= {"pyproject.toml", "setup.cfg", "setup.py"}
    assert [
        name for name in names if name not in about and not name.startswith("kwise.egg-info/")
    ] == files_of_the_package(clone)


def test_an_installed_wheel_runs_without_other_packages(built: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", symlinks=True)
    interpreter = str(tmp_path / "venv" / "bin" / "python")
    (wheel,) = built.glob("*.whl")
    install = ["--python", interpreter, "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    # Without PYTHONPATH, in which pip would find a kwise that is installed already.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, "-m", "pip", *install], check=True, env=environment)
    for command in ([interpreter, "-m", "kwise"], [str(tmp_path / "venv" / "bin" / "kwise")]):
        done = subprocess.run(
            [*command, "--version"], cwd=tmp_path, env={}, capture_output=True, text=True
        )
        assert (done.stdout, done.stderr) == (f"kwise {kwise.__version__}\n", "")


# Extras


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(extras: list[str]) -> set[str]:
    """Return the distributions that the extras name, directly or through other extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = list(project["dependencies"])
    for extra in extras:
        requirements += project["optional-dependencies"][extra]
    names = set()
    for requirement in requirements:
        match = re.match(r"([\w.-]+)(?:\[([\w,-]+)\])?", requirement)
        assert match
        if match[1] == "kwise":
            names |= declared(match[2].split(","))
        else:
            names.add(normalised(match[1]))
    return names


@pytest.mark.parametrize("folder", FOLDERS)
def test_what_a_folder_imports_comes_with_its_extra(folder: str) -> None:
    """deptry checks that some extra declares a package; this checks that the right one does."""
    graph = grimp.build_graph("kwise", include_external_packages=True, cache_dir=None)
    package = f"kwise.{folder}"
    imported = graph.find_upstream_modules(package, as_package=True)
    distributions = packages_distributions()
    extras = declared(FOLDERS[folder])
    missing = {}
    for name in imported:
        top = name.split(".")[0]
        if top in sys.stdlib_module_names or top in ("kwise", "google"):  # google: of protobuf
            continue
        if folder == "rl" and top in ADAPTED:
            continue
        provided_by = {normalised(name) for name in distributions.get(top, [top])}
        if not provided_by & extras:
            missing[name] = provided_by
    assert missing == {}
