"""A small web on this machine: absolute URLs, http and https, served by a forward proxy on 127.0.0.1.

The demo and the tests fetch from it as from the real web: plain requests come with absolute URLs, https ones through
CONNECT, with certificates of an authority made up for the occasion. It listens on loopback only, connects nowhere,
and reads nothing but what it is given. What a server can do wrong is an attribute of its `Reply`.
"""

from __future__ import annotations

import contextlib
import datetime
import http.client
import ipaddress
import shutil
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any


@dataclass(frozen=True)
class Reply:
    """What one URL answers. headers: in order; Content-Length is added unless `fault` decides otherwise.

    delay_seconds: before the first byte. fault: "" or one of "silent" (never answers), "drip" (a byte of the body
    every 0.05 s), "drip_head" (of the head), "reset" (the connection breaks before the answer), "cut" (half the body,
    then it ends), "chunked" (sent in chunks), "bad_chunks" (a chunk size that is no number), "endless" (chunks that
    never end).
    """

    status: int = 200
    body: bytes = b""
    content_type: str = "text/html; charset=utf-8"
    headers: tuple[tuple[str, str], ...] = ()
    delay_seconds: float = 0.0
    fault: str = ""


@dataclass(frozen=True)
class Seen:
    """One request: the URL, its headers by lower-case name, when it began and ended (monotonic seconds)."""

    url: str
    headers: Mapping[str, str]
    began: float
    ended: float


Site = Mapping[str, Reply | bytes] | Callable[[str], Reply | bytes | None]

NOT_FOUND = Reply(404, b"<!doctype html><title>Not found</title>")


class LoopbackWeb:
    """Serves a site while a `with` block runs.

    site: a mapping of absolute URLs to replies (or to a body of HTML), or a function from URL to one; None and absent
    keys answer 404. A robots.txt that is absent answers 404, which allows everything. proxy, ca_file: what the
    fetcher's options of these names are to be. seen: every request so far, in the order they ended.
    """

    def __init__(self, site: Site) -> None:
        self.site = site
        self.seen: list[Seen] = []
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self._folder = Path(tempfile.mkdtemp(prefix="loopback-"))
        self._authority = _Authority(self._folder)
        self.ca_file = str(self._folder / "ca.pem")
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.web = self
        self.proxy = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> LoopbackWeb:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        shutil.rmtree(self._folder, ignore_errors=True)

    def urls(self) -> list[str]:
        """The URLs requested so far."""
        with self.lock:
            return [seen.url for seen in self.seen]

    def reply(self, url: str) -> Reply:
        found = self.site(url) if callable(self.site) else self.site.get(url)
        return NOT_FOUND if found is None else found if isinstance(found, Reply) else Reply(body=found)

    def certificate(self, host: str) -> ssl.SSLContext:
        return self._authority.context(host)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    web: LoopbackWeb

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is part of what is played here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server
    tunnel = ""

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is logged: `LoopbackWeb.seen` has it."""

    def do_CONNECT(self) -> None:
        host, _, port = self.path.rpartition(":")
        self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        self.wfile.flush()
        try:
            self.connection = self.server.web.certificate(host.strip("[]")).wrap_socket(
                self.connection, server_side=True
            )
        except (OSError, ValueError):
            self.close_connection = True
            return
        self.rfile = self.connection.makefile("rb", -1)
        self.wfile = _SocketWriter(self.connection)  # type: ignore[assignment]  # has write and flush
        self.tunnel = f"https://{host}" + ("" if port == "443" else f":{port}")
        self.close_connection = False
        self.handle_one_request()
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.unwrap()

    def do_GET(self) -> None:
        web, began = self.server.web, time.monotonic()
        url = self.tunnel + self.path if self.tunnel else self.path
        headers = {name.lower(): value for name, value in self.headers.items()}
        try:
            self._answer(web.reply(url))
        except (OSError, ValueError):
            self.close_connection = True
        finally:
            with web.lock:
                web.seen.append(Seen(url, headers, began, time.monotonic()))

    def _answer(self, reply: Reply) -> None:
        closing = self.server.web.closing
        self.close_connection = True
        if reply.delay_seconds:
            closing.wait(reply.delay_seconds)
        if reply.fault == "silent":
            closing.wait(600)
            return
        if reply.fault == "reset":
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        chunked = reply.fault in ("chunked", "bad_chunks", "endless")
        fields = [("Content-Type", reply.content_type)] if reply.content_type else []
        fields += [("Transfer-Encoding", "chunked")] if chunked else [("Content-Length", str(len(reply.body)))]
        fields += [*reply.headers, ("Connection", "close")]
        phrase = http.client.responses.get(reply.status, "Unknown")
        head = f"HTTP/1.1 {reply.status} {phrase}\r\n" + "".join(f"{n}: {v}\r\n" for n, v in fields) + "\r\n"
        self._send(head.encode(), reply.fault == "drip_head")
        if reply.fault == "cut":
            self._send(reply.body[: len(reply.body) // 2])
        elif reply.fault == "bad_chunks":
            self._send(b"5\r\nhello\r\nnot a number\r\n")
        elif chunked:
            body = reply.body or b"endless "
            while not closing.is_set():
                for at in range(0, len(body), 1000):
                    piece = body[at : at + 1000]
                    self._send(b"%x\r\n%s\r\n" % (len(piece), piece))
                if reply.fault == "chunked":
                    self._send(b"0\r\n\r\n")
                    return
        else:
            self._send(reply.body, reply.fault == "drip")

    def _send(self, data: bytes, drip: bool = False) -> None:
        if not drip:
            self.wfile.write(data)
            self.wfile.flush()
            return
        for at in range(len(data)):
            if self.server.web.closing.wait(0.05):
                return
            self.wfile.write(data[at : at + 1])
            self.wfile.flush()


class _SocketWriter:
    """Unbuffered writes to a TLS connection, as `http.server` wants them."""

    def __init__(self, connection: ssl.SSLSocket) -> None:
        self._connection = connection
        self.closed = False

    def write(self, data: bytes) -> int:
        self._connection.sendall(data)
        return len(data)

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        self.closed = True


class _Authority:
    """A certificate authority that lives as long as its folder, and the certificates it gave to hosts."""

    def __init__(self, folder: Path) -> None:
        from cryptography.hazmat.primitives.asymmetric import ec

        self._folder = folder
        self._lock = threading.Lock()
        self._contexts: dict[str, ssl.SSLContext] = {}
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._host_key = ec.generate_private_key(ec.SECP256R1())
        self._root = self._sign("loopback authority", None)
        (folder / "ca.pem").write_bytes(self._root.public_bytes(_pem()))

    def _sign(self, name: str, host: str | None) -> Any:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes
        from cryptography.x509.oid import NameOID

        now = datetime.datetime.now(datetime.UTC)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:60])])
        issuer = subject if host is None else self._root.subject
        key = self._key if host is None else self._host_key
        builder = (
            x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=2))
            .add_extension(x509.BasicConstraints(ca=host is None, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        if host is None:
            usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
            builder = builder.add_extension(usage, critical=True)
        else:
            try:
                names: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
            except ValueError:
                names = x509.DNSName(host)
            builder = builder.add_extension(x509.SubjectAlternativeName([names]), critical=False)
        return builder.sign(self._key, hashes.SHA256())

    def context(self, host: str) -> ssl.SSLContext:
        """A server's TLS context with a certificate for `host`."""
        from cryptography.hazmat.primitives.serialization import NoEncryption, PrivateFormat

        with self._lock:
            if host not in self._contexts:
                pem = self._host_key.private_bytes(_pem(), PrivateFormat.PKCS8, NoEncryption())
                path = self._folder / "host.pem"
                path.touch(0o600)
                path.write_bytes(pem + self._sign(host, host).public_bytes(_pem()))
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(path)
                self._contexts[host] = context
            return self._contexts[host]


def _pem() -> Any:
    from cryptography.hazmat.primitives.serialization import Encoding

    return Encoding.PEM
