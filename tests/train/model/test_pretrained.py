"""A name that is neither a path nor on the hub is told at once, in one line."""

import re
import socket
from typing import Any

import pytest
from huggingface_hub import HfApi, constants

from kwise.errors import ConfigError
from kwise.train.model.pretrained import check_source


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let the hub be unreachable, and return the names that it is asked for."""
    names: list[str] = []

    def model_info(self: Any, name: str, *, timeout: float) -> None:
        names.append(name)
        assert timeout <= 10
        try:
            raise socket.gaierror(-2, "Name or service not known")
        except socket.gaierror as error:
            raise ConnectionError("Max retries exceeded with url: /api/models") from error

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(HfApi, "model_info", model_info)
    return names


def test_a_hub_that_cannot_be_reached_is_asked_once_with_a_time_out(asked: list[str]) -> None:
    """transformers tried for 40 s, and told of its retries."""
    line = (
        "--model owner/never-seen: there is no such file or directory, and the hub cannot be "
        "reached: [Errno -2] Name or service not known"
    )
    for _ in range(2):
        with pytest.raises(ConfigError, match=f"^{re.escape(line)}$"):
            check_source("--model", "owner/never-seen")
    assert asked == ["owner/never-seen"]


@pytest.mark.parametrize("name", ["/tmp/none/x", "./none", "../none", "a/b/c", "none/", "~/none"])
def test_a_path_is_not_looked_for_on_the_hub(asked: list[str], name: str) -> None:
    line = f"^CHECKPOINT {re.escape(name)}: there is no such file or directory$"
    with pytest.raises(ConfigError, match=line):
        check_source("CHECKPOINT", name)
    assert asked == []
