"""One GET within hard bounds: of total time, of bytes, of where it may connect.

urllib3's connections do HTTP and TLS. What they leave open is closed here: a deadline over the whole exchange (a
server that sends a byte now and then never meets a socket timeout), the check of the address that is really connected
to (a name may point into the private network), and the size of the body, which is taken as received, without its
transfer coding and with its content coding. Nothing is reused between requests.
"""

from __future__ import annotations

import contextlib
import heapq
import http.client
import ipaddress
import itertools
import logging
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from urllib.parse import urlsplit

from pipelines.urls import Parsed, Refused, parse


@dataclass(frozen=True)
class Limits:
    """timeout_seconds: for the whole exchange. max_bytes: of the body as sent. user_agent: the header's value.
    allow_private: whether addresses outside the public internet may be connected to. proxy: "http://host:port" or
    "". ca_file: a PEM file of authorities to trust instead of the system's, or ""."""

    timeout_seconds: float
    max_bytes: int
    user_agent: str
    allow_private: bool = False
    proxy: str = ""
    ca_file: str = ""


@dataclass(frozen=True)
class Answer:
    """A whole answer. head: the status line and fields as they are stored, ending in an empty line; fields: by
    lower-case name, the first of equal names; body: without transfer coding, empty if it was not wanted; request: the
    request's head."""

    status: int
    head: bytes
    fields: dict[str, str]
    body: bytes
    request: bytes


class Failed(Exception):
    """No answer: `reason` is bad_url, dns, private_address, connection, tls, timeout, bad_http or too_large."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


logging.getLogger("urllib3").addHandler(
    logging.NullHandler()
)  # what a server does wrong becomes a reason, not a line


def spell(url: str) -> str:
    """A URL as it is requested and stored: parsed as browsers do, without its fragment. Raises Failed."""
    try:
        parsed = parse(url)
    except Refused as error:
        raise Failed("bad_url", str(error)) from None
    if parsed.credentials:
        raise Failed("bad_url", "credentials")
    return f"{origin(parsed)}{target(parsed)}"


def origin(parsed: Parsed) -> str:
    return f"{parsed.scheme}://{parsed.host}{':' + parsed.port if parsed.port else ''}"


def target(parsed: Parsed) -> str:
    return (parsed.path or "/") + (f"?{parsed.query}" if parsed.query else "")


def get(url: str, limits: Limits, want: Callable[[int, dict[str, str]], bool] | None = None) -> Answer:
    """GET a URL as `spell` gives it. `want(status, fields)` says by the head whether the body is read.

    Redirects are not followed. Raises Failed, nothing else.
    """
    deadline = time.monotonic() + limits.timeout_seconds
    with _WATCHDOG.watch(deadline) as watch:
        try:
            answer = _exchange(url, limits, want, watch)
            if watch.expired:  # a connection that was shut down reads as one that ended
                raise Failed("timeout")
            return answer
        except Failed as error:
            raise (Failed("timeout", "the time for the whole exchange is up") if watch.expired else error) from None
        except Exception as error:
            raise _failure(error, watch.expired) from None


def _failure(error: Exception, expired: bool) -> Failed:
    """Which reason an error of the HTTP, TLS or socket layer stands for."""
    from urllib3 import exceptions as u3

    detail = re.sub(r"0x[0-9a-f]+", "0x", str(error))[:200]
    if expired or isinstance(error, TimeoutError | u3.TimeoutError):
        return Failed("timeout", detail)
    if isinstance(error, ssl.SSLError | u3.SSLError | ssl.CertificateError):
        return Failed("tls", detail)
    if isinstance(error, u3.IncompleteRead | ConnectionError | http.client.RemoteDisconnected):
        return Failed("connection", detail)
    cause = error.args[1] if isinstance(error, u3.ProtocolError) and len(error.args) > 1 else error.__cause__
    if isinstance(cause, Exception) and cause is not error:
        return _failure(cause, False)
    if isinstance(error, OSError) and not isinstance(error, http.client.HTTPException):
        return Failed("connection", detail)
    if isinstance(error, u3.HTTPError | http.client.HTTPException | ValueError):
        return Failed("bad_http", detail)
    raise error


class _Watch:
    """One exchange under the watchdog's eye: `expired` once its time is up."""

    def __init__(self, deadline: float) -> None:
        self.deadline, self.expired, self.ended = deadline, False, False
        self._handles: list[socket.socket] = []
        self._lock = threading.Lock()

    def left(self) -> float:
        return max(0.001, self.deadline - time.monotonic())

    def attach(self, connection: socket.socket) -> None:
        """Hold a second handle on a connection: TLS detaches the first one."""
        handle = connection.dup()
        with self._lock:
            self._handles.append(handle)
        if self.expired:
            self.expire()

    def expire(self) -> None:
        with self._lock:
            if self.ended:
                return
            self.expired = True
            for handle in self._handles:
                with contextlib.suppress(OSError):
                    handle.shutdown(socket.SHUT_RDWR)

    def end(self) -> None:
        with self._lock:
            self.ended = True
            for handle in self._handles:
                handle.close()


class _Watchdog:
    """A thread that ends exchanges whose time is up; started on first use in each process."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._heap: list[tuple[float, int, _Watch]] = []
        self._numbers = itertools.count()
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def watch(self, deadline: float) -> Iterator[_Watch]:
        watch = _Watch(deadline)
        with self._condition:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="deadlines", daemon=True)
                self._thread.start()
            heapq.heappush(self._heap, (deadline, next(self._numbers), watch))
            self._condition.notify()
        try:
            yield watch
        finally:
            watch.end()

    def _run(self) -> None:
        with self._condition:
            while True:
                while self._heap and self._heap[0][2].ended:
                    heapq.heappop(self._heap)
                if not self._heap:
                    self._condition.wait()
                    continue
                wait = self._heap[0][0] - time.monotonic()
                if wait > 0:
                    self._condition.wait(min(wait, 1.0))
                else:
                    heapq.heappop(self._heap)[2].expire()


_WATCHDOG = _Watchdog()


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the public internet, also where it is wrapped in an IPv6 address."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo or (None, None))[1]
        if inner is None and ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            ip = inner
    return ip.is_global and not ip.is_multicast


_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def _open_socket(host: str, port: int, watch: _Watch, allow_private: bool) -> socket.socket:
    """Connect to the first address of a host that may be connected to."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise Failed("dns", f"{host}: {error}") from None
    allowed = [entry for entry in found if allow_private or is_public(str(entry[4][0]))]
    if not allowed:
        raise Failed("private_address", f"{host} is {found[0][4][0] if found else 'nowhere'}")
    failure: OSError | None = None
    for family, kind, protocol, _, address in allowed[:4]:
        connection = socket.socket(family, kind, protocol)
        try:
            connection.settimeout(watch.left())
            watch.attach(connection)
            connection.connect(address)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connection
        except OSError as error:
            connection.close()
            failure = error
            if watch.expired:
                break
    raise failure or OSError("no address")


def _check_literal(host: str) -> None:
    """Through a proxy the name is looked up elsewhere; what names a private address by itself is refused here."""
    bare = host.strip("[]").rstrip(".")
    try:
        public = is_public(bare)
    except ValueError:
        public = bare != "localhost" and not bare.endswith((".localhost", ".local", ".internal"))
    if not public:
        raise Failed("private_address", host)


def _exchange(url: str, limits: Limits, want: Callable[[int, dict[str, str]], bool] | None, watch: _Watch) -> Answer:
    from urllib3.connection import HTTPConnection, HTTPSConnection

    class Plain(HTTPConnection):
        def _new_conn(self) -> socket.socket:
            return _open_socket(self.host, self.port, watch, limits.allow_private or bool(limits.proxy))

    class Secure(HTTPSConnection):
        def _new_conn(self) -> socket.socket:
            return _open_socket(self.host, self.port, watch, limits.allow_private or bool(limits.proxy))

    parsed = parse(url)
    secure = parsed.scheme == "https"
    host, port = parsed.host.strip("[]"), int(parsed.port or (443 if secure else 80))
    if not limits.allow_private:
        _check_literal(parsed.host)
    at = urlsplit(limits.proxy) if limits.proxy else None
    peer = (at.hostname or "", at.port or 3128) if at else (host, port)
    fields = {
        "Host": parsed.host + (f":{parsed.port}" if parsed.port else ""),
        "User-Agent": limits.user_agent,
        "Accept": "text/html,application/xhtml+xml;q=0.9,*/*;q=0.1",
        "Accept-Encoding": "gzip, deflate, br",
        "Connection": "close",
    }
    connection: HTTPConnection
    if secure:
        connection = Secure(*peer, ssl_context=_tls(limits.ca_file), timeout=limits.timeout_seconds)
        if at:
            connection.set_tunnel(host, port, scheme="http")
    else:
        connection = Plain(*peer, timeout=limits.timeout_seconds)
    with contextlib.closing(connection):
        sent_target = url if at and not secure else target(parsed)
        connection.request("GET", sent_target, headers=fields, preload_content=False, decode_content=False)
        response = connection.getresponse()
        with contextlib.closing(response):
            head, by_name = _head(response.version, response.status, response.reason or "", response.headers.items())
            body = b""
            if want is None or want(response.status, by_name):
                body = _body(response.stream(1 << 16, decode_content=False), limits.max_bytes)
    request = f"GET {target(parsed)} HTTP/1.1\r\n" + "".join(f"{n}: {v}\r\n" for n, v in fields.items()) + "\r\n"
    return Answer(response.status, head, by_name, body, request.encode("latin-1", "replace"))


@cache
def _tls(ca_file: str) -> ssl.SSLContext:
    from urllib3.util import create_urllib3_context

    context = create_urllib3_context()
    context.verify_mode, context.check_hostname = ssl.CERT_REQUIRED, True
    if ca_file:
        context.load_verify_locations(ca_file)
    else:
        context.load_default_certs()
    return context


def _head(version: int, status: int, reason: str, fields: object) -> tuple[bytes, dict[str, str]]:
    """The head as it is stored: the transfer coding is gone from the body, so its field goes too."""
    lines = [f"HTTP/1.{1 if version == 11 else 0} {status:03d} {_one_line(reason)}"]
    by_name: dict[str, str] = {}
    for name, value in fields:  # type: ignore[attr-defined]  # (str, str) pairs of urllib3's HTTPHeaderDict
        value = _one_line(value)
        by_name.setdefault(name.lower(), value)
        if name.lower() != "transfer-encoding":
            lines.append(f"{name}: {value}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1", "replace"), by_name


def _one_line(value: str) -> str:
    return re.sub(r"[\r\n]+[ \t]*", " ", value).strip()


def _body(pieces: Iterator[bytes], max_bytes: int) -> bytes:
    body = bytearray()
    for piece in pieces:
        body += piece
        if len(body) > max_bytes:
            raise Failed("too_large", f"more than {max_bytes} bytes")
    return bytes(body)
