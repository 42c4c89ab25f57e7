"""Certificates made by openssl, and a TLS server in front of a plain one."""

import socket
import ssl
import subprocess
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from support.needs import executable

_CONFIGURATION = """
[ca]
default_ca = this
[this]
database = {folder}/index.txt
serial = {folder}/serial
new_certs_dir = {folder}
default_md = sha256
policy = any
copy_extensions = copy
unique_subject = no
[any]
commonName = supplied
"""
_EXPIRED = ("-startdate", "20200101000000Z", "-enddate", "20200102000000Z")
_POLL_SECONDS = 0.1


class Certificate(NamedTuple):
    """The files of a certificate and its key."""

    file: Path
    key: Path


class Authority:
    """A certificate authority; `file` is its certificate."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self.file = self_signed(folder, "authority", "CN=An authority of the tests", authority=True).file
        (folder / "index.txt").touch()
        (folder / "serial").write_text("01\n")
        (folder / "ca.cnf").write_text(_CONFIGURATION.format(folder=folder))

    def certificate(self, name: str, host: str = "IP:127.0.0.1", *, expired: bool = False) -> Certificate:
        """Make a certificate for a host, given as in subjectAltName."""
        certificate = Certificate(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        request = self._folder / f"{name}.csr"
        _openssl(
            "req",
            *_key(certificate.key),
            "-subj",
            "/CN=tests",
            "-addext",
            f"subjectAltName={host}",
            "-out",
            str(request),
        )
        dates = _EXPIRED if expired else ("-days", "30")
        signing = ["-config", str(self._folder / "ca.cnf"), "-cert", str(self.file)]
        signing += ["-keyfile", str(self._folder / "authority.key"), "-in", str(request), "-out", str(certificate.file)]
        _openssl("ca", "-batch", "-notext", *signing, *dates)
        return certificate


def self_signed(
    folder: Path, name: str, subject: str = "CN=tests", host: str = "IP:127.0.0.1", *, authority: bool = False
) -> Certificate:
    """Make a self-signed certificate; with `authority`, it may sign others."""
    certificate = Certificate(folder / f"{name}.pem", folder / f"{name}.key")
    extension = "keyUsage=critical,keyCertSign" if authority else f"subjectAltName={host}"
    subject_words = ["-subj", f"/{subject}", "-addext", extension, "-days", "30"]
    _openssl("req", "-x509", *_key(certificate.key), *subject_words, "-out", str(certificate.file))
    return certificate


def _key(path: Path) -> list[str]:
    return ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", str(path)]


def _openssl(*words: str) -> None:
    done = subprocess.run([executable("openssl"), *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


class TlsServer:
    """Speaks TLS on 127.0.0.1 and a free port, and passes what comes on to a plain server.

    Attributes:
        url: Its address.
        port: Its port.
    """

    def __init__(self, certificate: Certificate, upstream: str) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate.file, certificate.key)
        host, _, port = upstream.removeprefix("http://").partition(":")
        self._upstream = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(_POLL_SECONDS)
        self.port = self._listener.getsockname()[1]
        self.url = f"https://127.0.0.1:{self.port}"
        self._closing = threading.Event()
        self._threads = [threading.Thread(target=self._accept, name="tls-server", daemon=True)]
        self._threads[0].start()

    def __enter__(self) -> "TlsServer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closing.set()
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _accept(self) -> None:
        while not self._closing.is_set():
            with suppress(TimeoutError):
                connection, _ = self._listener.accept()
                connection.settimeout(5)
                thread = threading.Thread(target=self._serve, args=(connection,), name="tls-connection", daemon=True)
                self._threads.append(thread)
                thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with (
            connection,
            suppress(OSError),
            self._context.wrap_socket(connection, server_side=True) as secure,
            socket.create_connection(self._upstream) as plain,
        ):
            secure.settimeout(_POLL_SECONDS)
            plain.settimeout(_POLL_SECONDS)
            while not self._closing.is_set():
                if not (_passed_on(secure, plain) and _passed_on(plain, secure)):
                    return


def _passed_on(source: socket.socket, target: socket.socket) -> bool:
    """Pass on what has come; says whether the connection goes on."""
    with suppress(TimeoutError):
        piece = source.recv(65_536)
        target.sendall(piece)
        return bool(piece)
    return True
