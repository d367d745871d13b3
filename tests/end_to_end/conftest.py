"""The fixtures of the end-to-end tests."""

from pathlib import Path

import pytest

from tests.held_model import HeldModel


@pytest.fixture
def held(tmp_path: Path) -> HeldModel:
    """A model that the test can hold, for `running_held_server`."""
    directory = tmp_path / "held"
    directory.mkdir()
    return HeldModel(directory)
