"""Which addresses a server listens on without credentials."""

from pathlib import Path
from typing import Any

import pytest

from kwise.cli import main
from kwise.engine.server.config import ServerConfig
from kwise.engine.server.security.exposure import check_exposure
from kwise.errors import ConfigError

PUBLIC = ["0.0.0.0", "::", "[::]", "", "192.0.2.1", "10.0.0.1", "::ffff:127.0.0.1", "fe80::1%lo"]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.8.8.8", "::1", "[::1]"])
def test_loopback_needs_no_credentials(host: str) -> None:
    check_exposure(ServerConfig(host=host))


@pytest.mark.parametrize("host", PUBLIC)
def test_another_address_needs_credentials_or_insecure(host: str) -> None:
    with pytest.raises(ConfigError, match=r"--token-file .* --insecure"):
        check_exposure(ServerConfig(host=host))
    pair: dict[str, Any] = {"tls_cert": Path("cert"), "tls_key": Path("key")}
    with pytest.raises(ConfigError, match="--insecure"):  # TLS says nothing of who calls
        check_exposure(ServerConfig(host=host, **pair))
    check_exposure(ServerConfig(host=host, insecure=True))
    check_exposure(ServerConfig(host=host, token_file=Path("tokens")))
    check_exposure(ServerConfig(host=host, tls_client_ca=Path("ca"), **pair))


@pytest.mark.parametrize("host", ["ipv4:0.0.0.0", "no.such.host.invalid"])
def test_a_host_that_is_no_address_is_refused(host: str) -> None:
    """gRPC would listen on all networks for the first one."""
    with pytest.raises(ConfigError, match="cannot listen there"):
        check_exposure(ServerConfig(host=host))


def test_the_command_refuses_before_it_listens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", str(tmp_path), "--host", "0.0.0.0", "--port", "0"]) == 2
    assert capsys.readouterr().err.startswith("kwise serve: --host '0.0.0.0' lets other machines")


@pytest.mark.parametrize("name", ["tls_cert", "tls_key", "tls_client_ca"])
def test_options_of_tls_belong_together(name: str) -> None:
    options: dict[str, Any] = {name: Path("file")}
    with pytest.raises(ConfigError, match="--tls-cert and --tls-key"):
        ServerConfig(**options)
