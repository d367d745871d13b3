"""A home directory for libraries that fail without one.

A container that runs as any user has no entry for it in /etc/passwd.
"""

import os
from pathlib import Path


def ensure_home() -> None:
    """Set HOME to "/", as container runtimes do, if the user has no home directory."""
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = "/"
