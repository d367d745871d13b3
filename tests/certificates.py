"""Certificates for tests, made by the program openssl."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

_CURVE = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """The files of a certificate and its private key."""

    cert: Path
    key: Path


class Authority:
    """An authority that signs certificates. Its own certificate is `cert`."""

    def __init__(self, directory: Path, name: str = "authority") -> None:
        self._directory = directory
        self.cert, self._key = directory / f"{name}.pem", directory / f"{name}.key"
        _openssl(
            *("req", "-x509", *_CURVE, "-subj", f"/CN={name}", "-days", "2"),
            *("-keyout", self._key, "-out", self.cert),
        )

    def sign(self, name: str, *, days: int = 2, encrypt: str = "") -> Pair:
        """Return a certificate for localhost and 127.0.0.1.

        Args:
            name: the name of the files.
            days: how long it is valid; it has expired if this is negative.
            encrypt: a password of the key; "" for none.
        """
        pair = Pair(cert=self._directory / f"{name}.pem", key=self._directory / f"{name}.key")
        request = self._directory / f"{name}.request"
        extensions = self._directory / f"{name}.extensions"
        extensions.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
        _openssl(
            *("req", "-new", *_CURVE, "-subj", f"/CN={name}"),
            *("-keyout", pair.key, "-out", request),
        )
        _openssl(
            *("x509", "-req", "-in", request, "-CA", self.cert, "-CAkey", self._key),
            *("-CAcreateserial", "-days", str(days), "-extfile", extensions, "-out", pair.cert),
        )
        if encrypt:
            _openssl(
                *("ec", "-in", pair.key, "-aes256", "-passout", f"pass:{encrypt}"),
                *("-out", pair.key),
            )
        return pair


def _openssl(*arguments: str | Path) -> None:
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
