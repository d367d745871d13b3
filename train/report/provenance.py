"""The origin of a checkpoint: the revision of the code and the versions of libraries.

The data is identified by its hash, see run/run_record.py.
"""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("kwise", "torch", "transformers", "accelerate", "peft", "bitsandbytes", "tokenizers")


def git_revision() -> str | None:
    """Return the commit of the working directory, with "-dirty" if tracked files have changed.

    None outside of a git repository.
    """
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
    """Return the versions of Python and of the installed packages that the result depends on."""
    versions_by_package = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions_by_package[package] = version(package)
        except PackageNotFoundError:  # some come with an extra
            continue
    return versions_by_package
