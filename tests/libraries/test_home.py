"""A process without a home directory, as in a container that runs as any user."""

import os
import subprocess
import sys

import pytest

# The modules are imported before, because the user may not be allowed to read them.
CODE = """
import os
from pathlib import Path
from kwise.libraries.home import ensure_home

os.environ.pop("HOME", None)
os.setuid(54321)  # a user without an entry in /etc/passwd
try:
    Path.home()
except RuntimeError:
    ensure_home()
    print(Path.home())
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root may take another user's id")
def test_a_user_without_a_home_directory_gets_one() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout == "/\n"
