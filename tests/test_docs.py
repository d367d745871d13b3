"""README, CONTRIBUTING and docs/ name only what exists: links, files, modules, options, targets."""

import contextlib
import io
import re
from pathlib import Path

import pytest

from kwise.cli import main

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")]
PAGES += [ROOT / "examples" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# These pages also name what no longer exists.
HISTORY = {"CHANGELOG.md", "log.md"}
CURRENT_PAGES = [page for page in PAGES if page.name not in HISTORY]

COMMANDS = ["recipes", "train", "eval", "export", "rerank", "serve", "score", "rank", "compare"]
COMMANDS += ["models", "info", "calibrate", "top"]
COMMANDS += ["serve --ray", "rerank --ray"]
COMMANDS += [
    f"data {name}" for name in ("convert", "validate", "stats", "split", "dedupe", "merge")
]
COMMANDS += [f"bench {name}" for name in ("graph", "gpu", "precision", "load", "train", "soak")]
COMMANDS += [f"bench {name}" for name in ("queue", "cluster", "capacity")]
COMMANDS += ["bench experiments", "bench evidence"]
# Options of pytest, pip and perf_analyzer that the pages mention.
OTHER_OPTIONS = {"--hypothesis-profile", "--no-deps", "--input-data"}
# Those of pip: docs/gpu.md.
OTHER_OPTIONS |= {"--dest", "--find-links", "--no-index", "--only-binary", "--python-version"}
# Those of RL libraries: docs/protocols.md and docs/rl.md.
OTHER_OPTIONS |= {"--apply-chat-template", "--custom-rm-path", "--group-rm", "--reward", "--train"}
OTHER_OPTIONS |= {"--rm-type", "--rm-url"}
# Those of docker, kubectl and systemctl: docs/deploy.md.
OTHER_OPTIONS |= {"--build-arg", "--cap-drop", "--cert", "--cpus", "--from-file", "--gpus", "--key"}
OTHER_OPTIONS |= {"--no-healthcheck", "--now", "--read-only", "--security-opt", "--signal"}
OTHER_OPTIONS |= {"--stop-timeout", "--target", "--tmpfs"}

FOLDERS = (
    "benchmarks|bulk|client|cluster|deploy|docs|engine|evaluation|examples|export|kwise|protos|rl"
    "|tests|train"
)
LINK = re.compile(r"\]\(([^)\s#]*)(?:#([^)\s]*))?\)")
PATH = re.compile(rf"`((?:{FOLDERS})/[\w./-]*)`")
MODULE = re.compile(r"`(kwise(?:\.[a-z_0-9]+)+)`")
OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]*")
TARGET = re.compile(r"\bmake ([a-z0-9-]+)(?=[`\s])")
TEST = re.compile(r"def (test_\w+)\(")
CODE = re.compile(r"```.*?```|`[^`\n]+`", re.DOTALL)


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


def code_of(page: Path) -> str:
    """Return all code of a page, inline and in blocks."""
    return "\n".join(CODE.findall(page.read_text(encoding="utf-8")))


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def is_module_or_member(name: str) -> bool:
    """Return whether `kwise.a.b` is a module, or a name in the module `kwise.a`."""
    path = ROOT / name.replace(".", "/")
    parts = [path] if path.parent.name == "kwise" else [path, path.parent]
    return any(part.is_dir() or part.with_suffix(".py").is_file() for part in parts)


@pytest.fixture(scope="module")
def known_options() -> set[str]:
    """Return every option of every command, from the commands' own help."""
    options: set[str] = set()
    for command in COMMANDS:
        options |= set(OPTION.findall(help_of(command)))
    return options


def help_of(command: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as output, pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    return output.getvalue()


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for target, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        if target.startswith("http"):
            continue
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{target} does not exist"
        assert not anchor or anchor in anchors(path), f"{target} has no heading #{anchor}"


@pytest.mark.parametrize("page", CURRENT_PAGES, ids=page_id)
def test_files_and_modules_exist(page: Path) -> None:
    code = code_of(page)
    missing = [path for path in PATH.findall(code) if not (ROOT / path).exists()]
    missing += [module for module in MODULE.findall(code) if not is_module_or_member(module)]
    assert missing == []


@pytest.mark.parametrize("page", CURRENT_PAGES, ids=page_id)
def test_options_exist(page: Path, known_options: set[str]) -> None:
    # Options with an underscore are those of accelerate and torchrun.
    named = {option for option in OPTION.findall(code_of(page)) if "_" not in option}
    assert named - known_options - OTHER_OPTIONS == set()


def test_the_tests_that_security_names_exist() -> None:
    files = (ROOT / "tests").rglob("test_*.py")
    tests = {name for file in files for name in TEST.findall(file.read_text(encoding="utf-8"))}
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "SECURITY.md").read_text(encoding="utf-8")))
    assert len(named) > 10
    assert named - tests == set()


@pytest.mark.parametrize("page", CURRENT_PAGES, ids=page_id)
def test_make_targets_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z0-9-]+):", makefile, re.MULTILINE))
    assert set(TARGET.findall(code_of(page))) - targets == set()


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_lines_have_at_most_100_columns(page: Path) -> None:
    """A row of a table cannot be wrapped, so it may be longer."""
    lines = page.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if len(line) > 100 and not line.startswith("|")] == []


def test_readme_links_to_every_page_of_docs() -> None:
    links = {target for target, _ in LINK.findall((ROOT / "README.md").read_text(encoding="utf-8"))}
    assert {page_id(page) for page in PAGES if page.parent == ROOT / "docs"} <= links
