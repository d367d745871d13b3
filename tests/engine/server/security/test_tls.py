"""TLS and client certificates on both ports, with real clients, and rereads without a restart."""

import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPSConnection
from pathlib import Path

import pytest

from kwise.client import RewardClient, RewardServiceError
from kwise.engine.server.security.files import WatchedFiles
from kwise.engine.server.security.tls import read_tls
from kwise.errors import ConfigError
from tests.certificates import Authority, Pair
from tests.engine.server.security.conftest import ALICE, Secured, client_context, credentials_of
from tests.http_client import http_port
from tests.servers import PATIENCE_S, Server, raw_rewards, running_server, wait_until

GROUP = ("Why?", ["So.", "Dunno."])


def https_status(port: int, context: ssl.SSLContext, path: str = "/health") -> int:
    """Return the status of a GET over TLS."""
    connection = HTTPSConnection("localhost", port, timeout=PATIENCE_S, context=context)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


def is_refused_over_https(port: int, context: ssl.SSLContext) -> bool:
    """Return whether a TLS handshake fails. With TLS 1.3 the client learns it when it reads."""
    try:
        https_status(port, context)
    except (ssl.SSLError, ConnectionError):
        return True
    return False


def certificate_of(port: int) -> str:
    """Return the certificate that a port shows now, as PEM."""
    return ssl.get_server_certificate(("localhost", port), timeout=PATIENCE_S)


def grpc_port(server: Server) -> int:
    return int(server.address.rpartition(":")[2])


def scores(server: Server, ca: Path, pair: Pair | None = None, token: str = "") -> bool:
    """Return whether a client of this CA gets rewards."""
    credentials = credentials_of(ca, pair, token)
    with RewardClient(server.address, credentials=credentials, connect_timeout_s=1) as client:
        try:
            return len(raw_rewards(client.score(*GROUP))) == 2
        except RewardServiceError as error:
            assert error.code == "UNAVAILABLE", error
            return False


def test_both_ports_speak_tls(tls_server: Secured, authority: Authority) -> None:
    assert scores(tls_server.server, authority.cert, token=ALICE)
    assert https_status(tls_server.port, client_context(authority.cert)) == 200
    assert f"https://127.0.0.1:{tls_server.port}" in tls_server.server.log.text


def test_a_client_with_another_authority_refuses_the_server(
    tls_server: Secured, tmp_path: Path
) -> None:
    other = Authority(tmp_path)
    assert not scores(tls_server.server, other.cert, token=ALICE)
    assert is_refused_over_https(tls_server.port, client_context(other.cert))


@pytest.mark.parametrize("port_of", ["grpc", "http"])
def test_neither_port_speaks_tls_older_than_1_2(
    tls_server: Secured, authority: Authority, port_of: str
) -> None:
    port = tls_server.port if port_of == "http" else grpc_port(tls_server.server)
    context = client_context(authority.cert)
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    with pytest.warns(DeprecationWarning):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with (
        socket.create_connection(("localhost", port), PATIENCE_S) as connection,
        pytest.raises((ssl.SSLError, ConnectionError)),
        context.wrap_socket(connection, server_hostname="localhost"),
    ):
        pass


def test_a_client_without_tls_gets_no_answer(tls_server: Secured) -> None:
    with socket.create_connection(("localhost", tls_server.port), PATIENCE_S) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert b"HTTP/1.1" not in connection.recv(100)


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl_scores_over_tls(tls_server: Secured, authority: Authority) -> None:
    url = f"https://localhost:{tls_server.port}/v1/rewards"
    command = ["curl", "--silent", "--show-error", "--cacert", str(authority.cert), url]
    command += ["--header", "content-type: application/json", "--data"]
    command += ['{"prompt": "Why?", "responses": ["So."]}', "--write-out", "%{http_code}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("401")
    command += ["--header", f"authorization: Bearer {ALICE}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("200")


class Files:
    """The TLS files of a server, which are replaced as Kubernetes replaces a secret.

    The files are links into `..data`, which is a link to a directory of one version.
    """

    def __init__(self, directory: Path, cert: Path, key: Path, ca: Path) -> None:
        self.directory = directory
        self._num_versions = 0
        self.replace(cert, key, ca)
        for name in ("cert", "key", "ca"):
            (directory / name).symlink_to(f"..data/{name}")

    def replace(self, cert: Path, key: Path, ca: Path) -> None:
        """Replace all files in one step."""
        self._num_versions += 1
        version = self.directory / f"..version-{self._num_versions}"
        version.mkdir()
        for name, path in (("cert", cert), ("key", key), ("ca", ca)):
            shutil.copy(path, version / name)
        (self.directory / "..new").symlink_to(version.name)
        (self.directory / "..new").replace(self.directory / "..data")


@contextmanager
def running_mutual(artifact: Path, files: Files) -> Iterator[Server]:
    """Run a server that asks for client certificates."""
    names = {"--tls-cert": "cert", "--tls-key": "key", "--tls-client-ca": "ca"}
    options = [part for o, name in names.items() for part in (o, str(files.directory / name))]
    with running_server(artifact, "--http-port", "0", *options) as server:
        yield server


def test_client_certificates_and_rereads(
    tiny_artifact: Path,
    tmp_path: Path,
    authority: Authority,
    server_pair: Pair,
    client_pair: Pair,
) -> None:
    """A client needs a certificate of the authority that the file has now, on both ports."""
    directory = tmp_path / "secret"
    directory.mkdir()
    files = Files(directory, server_pair.cert, server_pair.key, authority.cert)
    other = Authority(tmp_path, "other")
    others = other.sign("others")
    expired = authority.sign("expired", days=-1)
    ca = authority.cert
    with running_mutual(tiny_artifact, files) as server:
        port = http_port(server)
        assert scores(server, ca, client_pair)
        assert https_status(port, client_context(ca, client_pair)) == 200
        for pair in (None, others, expired):
            assert not scores(server, ca, pair)
            assert is_refused_over_https(port, client_context(ca, pair))

        # A key that is not the certificate's: the earlier files stay in use.
        files.replace(others.cert, server_pair.key, other.cert)
        problem = "the key does not belong to the certificate"
        wait_until(lambda: problem in server.log.text)
        assert scores(server, ca, client_pair)

        # Another certificate and another authority: both are used, and the old one is not.
        renewed = authority.sign("renewed")
        files.replace(renewed.cert, renewed.key, other.cert)
        wait_until(lambda: "read the TLS files again" in server.log.text)
        assert scores(server, ca, others)
        assert not scores(server, ca, client_pair)
        assert https_status(port, client_context(ca, others)) == 200
        assert is_refused_over_https(port, client_context(ca, client_pair))
        assert "Traceback" not in server.log.text


def test_a_connection_outlives_a_reread_and_new_ones_get_the_new_certificate(
    tiny_artifact: Path, tmp_path: Path, authority: Authority, server_pair: Pair
) -> None:
    cert, key = tmp_path / "cert", tmp_path / "key"
    shutil.copy(server_pair.cert, cert)
    shutil.copy(server_pair.key, key)
    options = ("--tls-cert", str(cert), "--tls-key", str(key))
    with (
        running_server(tiny_artifact, "--http-port", "0", *options) as server,
        RewardClient(server.address, credentials=credentials_of(authority.cert)) as client,
    ):
        ports = (grpc_port(server), http_port(server))
        first = client.score(*GROUP)
        renewed = authority.sign("renewed")
        assert renewed.cert.read_text() != server_pair.cert.read_text()
        renewed.key.replace(key)
        renewed.cert.replace(cert)
        wait_until(lambda: certificate_of(ports[0]) == cert.read_text())
        wait_until(lambda: certificate_of(ports[1]) == cert.read_text())
        assert client.score(*GROUP).values == first.values


def test_what_is_wrong_with_the_files_is_one_sentence(
    authority: Authority, server_pair: Pair, client_pair: Pair, tmp_path: Path
) -> None:
    nothing, rubbish = tmp_path / "nothing", tmp_path / "rubbish"
    rubbish.write_text("-----BEGIN CERTIFICATE-----\nrubbish\n")
    encrypted = authority.sign("encrypted", encrypt="secret")
    cert, key, ca = server_pair.cert, server_pair.key, authority.cert
    wrong = [
        ((nothing, key, None), f"--tls-cert {nothing}: No such file or directory"),
        ((cert, tmp_path, None), f"--tls-key {tmp_path}: Is a directory"),
        ((cert, client_pair.key, None), "the key does not belong to the certificate"),
        ((rubbish, key, None), "they are not a certificate and a key in PEM"),
        ((encrypted.cert, encrypted.key, None), "the key is encrypted"),
        ((cert, key, rubbish), f"--tls-client-ca {rubbish}: it must have certificates in PEM"),
        ((cert, key, nothing), f"--tls-client-ca {nothing}: No such file or directory"),
    ]
    for arguments, problem in wrong:
        with pytest.raises(ConfigError) as raised:
            read_tls(*arguments)
        assert problem in str(raised.value)
        assert "\n" not in str(raised.value)
    assert read_tls(cert, key, ca).client_ca == ca.read_bytes()


def test_files_that_change_while_they_are_read_are_read_again(tmp_path: Path) -> None:
    """The first file was read before the change, and the second one after it."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text("old")
    second.write_text("old")
    reads = 0

    def read() -> tuple[str, str]:
        nonlocal reads
        reads += 1
        before = first.read_text()
        if reads == 1:
            first.write_text("newer")
            second.write_text("newer")
        return before, second.read_text()

    assert WatchedFiles([first, second], read, "files").value == ("newer", "newer")
    assert reads == 2
