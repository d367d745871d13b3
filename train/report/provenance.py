"""Where a checkpoint comes from: the code by revision, the libraries by version. (Its data by content: `run.describe_run`.)"""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("kwise", "torch", "transformers", "accelerate", "peft", "bitsandbytes", "tokenizers")


def git_revision() -> str | None:
    """The commit of the working directory, "-dirty" where files that git knows were changed since; None outside of git."""
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10
        )
        changed = subprocess.run(
            ["git", "status", "--porcelain", "-uno"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.stdout.strip() + ("-dirty" if changed.stdout.strip() else "")


def versions() -> dict[str, str]:
    """Of what the numbers depend on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # some are there only with an extra
            continue
    return found
