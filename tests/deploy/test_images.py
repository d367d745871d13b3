"""The Dockerfile: linted, and its ports, commands and build context fit kwise."""

import json
import re
from pathlib import Path

import pytest

from tests.deploy.tools import DEPLOY, lint, parsed

ROOT = DEPLOY.parent
DOCKERFILE = DEPLOY / "docker" / "Dockerfile"
TEXT = DOCKERFILE.read_text(encoding="utf-8").replace("\\\n", "")


def test_hadolint_finds_nothing() -> None:
    assert lint("hadolint", DOCKERFILE) == ""


def test_all_that_the_wheel_is_made_of_is_in_the_build_context() -> None:
    allowed = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    folders = {path.name for path in (ROOT / "kwise").iterdir() if path.is_symlink()}
    copied = set(re.findall(r"^COPY (?!--)(\S+) ", TEXT, re.MULTILINE)) - {"."}
    files = {"pyproject.toml", "setup.py", "README.md", "LICENSE", "MANIFEST.in", "kwise"}
    assert copied and {f"!{name}" for name in folders | files | copied} <= set(allowed)


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_the_command_of_each_image_is_one_that_kwise_takes(target: str) -> None:
    stage = TEXT.split(f"FROM runtime AS {target}\n")[1].split("\nFROM ")[0]
    found = re.search(r"^CMD (\[.*\])$", stage, re.MULTILINE)
    assert found is not None
    config = parsed(json.loads(found[1]))
    assert config.token_file == Path("/run/secrets/kwise/tokens")
    exposed = re.search(r"^EXPOSE (.*)$", TEXT, re.MULTILINE)
    assert exposed is not None
    assert exposed[1].split() == [str(config.port), str(config.http_port)]
    script = (DEPLOY / "docker" / "healthcheck.py").read_text(encoding="utf-8")
    assert f"http://127.0.0.1:{config.http_port}/readyz" in script


def test_the_image_runs_as_a_numbered_user_and_is_checked_without_a_shell() -> None:
    assert re.search(r"^USER \d+:\d+$", TEXT, re.MULTILINE)
    # A list. What is not one would run in a shell.
    assert '\nENTRYPOINT ["tini", "--", "kwise"]\n' in TEXT
    assert re.search(r"^HEALTHCHECK .* CMD \[\"python\", ", TEXT, re.MULTILINE)
