"""Pages' main text from a child process that a bad page can kill, and nothing else.

Guards, in this order: payload bytes; tags, counted before the page is parsed; nesting, where the parser stops; CPU
seconds of the child (ITIMER_PROF with the default action, so that a regular expression or C code is stopped too);
address space (RLIMIT_AS); and wall clock, as a last resort for a child that sleeps. Each ends the page with a reason,
and a child that it killed is started anew.

A page's result does not depend on the pages before it: the child runs in a fixed environment (hash seed, time zone,
locale, one thread), its caches are emptied between pages, and a page that failed for lack of memory, or whose child
died without a reason of its own (killed by an operator or by the system), is tried once more in a new child; that
verdict stands.

The child is `python -m pipelines.extract`; it imports no pyarrow and no Beam. Frames on its pipes are two lengths, a
JSON header and raw bytes.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import logging
import os
import resource
import select
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, BinaryIO

from pipelines.main_text import Extracted, ExtractOptions, extract_page

__all__ = ["ExtractOptions", "Extracted", "Extractor", "ExtractorError", "extract_page", "shared_extractor"]


class ExtractorError(Exception):
    """The extraction worker cannot be started: the run must end, for no page is to blame."""


# The child.

MAX_REPLY = 64 << 20
"""Bytes of text a page may give."""

_SAMPLE = b"""<html lang="en"><head><title>A page</title></head><body><nav><a href="/">Home</a></nav><article>
<h1>A page</h1><p>%s</p><p>Published on 3 May 2015.</p></article><footer>All rights reserved.</footer></body>""" % (
    b"Water boils at a hundred degrees where the air is as heavy as at the sea. " * 12
)


def write_frame(stream: BinaryIO, header: dict[str, Any], body: bytes) -> None:
    stream.write(pack_frame(header, body))
    stream.flush()


def pack_frame(header: dict[str, Any], body: bytes) -> bytes:
    """Two lengths (big-endian uint32), a JSON object, bytes."""
    encoded = json.dumps(header).encode("ascii")
    return struct.pack(">II", len(encoded), len(body)) + encoded + body


def read_frame(stream: BinaryIO) -> tuple[dict[str, Any], bytes] | None:
    """The next frame, or None at the end of the stream."""
    head = stream.read(8)
    if len(head) < 8:
        return None
    header_size, body_size = struct.unpack(">II", head)
    header = stream.read(header_size)
    body = stream.read(body_size)
    return (json.loads(header), body) if len(body) == body_size else None


def serve() -> None:
    """The child's life: options, a warm-up that proves the extractor works, then a page per frame until the end."""
    requests = open(0, "rb", closefd=False)  # noqa: SIM115  standard input, for the life of the process
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing a library prints may stand between frames
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPROF])
    logging.disable(logging.CRITICAL)
    first = read_frame(requests)
    if first is None:
        return
    options = ExtractOptions(**first[0])
    _warm_up(options)
    _limit_memory(options)
    usual = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    write_frame(replies, {"ready": True}, b"")
    while (frame := read_frame(requests)) is not None:
        header, body = _answer(*frame, options)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - usual
        write_frame(replies, {**header, "worn": grown > options.memory_mib * 512}, body)


def _warm_up(options: ExtractOptions) -> None:
    from trafilatura.meta import reset_caches

    for mode in ("fast", "standard", options.mode):
        found = extract_page(_SAMPLE, "", "", 0, replace(options, mode=mode, max_bytes=1 << 20))
        if "Water boils" not in found.text:
            raise RuntimeError(f"the extractor finds no text in a plain page ({mode}: {found.reason} {found.detail})")
    reset_caches()
    gc.freeze()


def _limit_memory(options: ExtractOptions) -> None:
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = held + (options.memory_mib << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _answer(request: dict[str, Any], payload: bytes, options: ExtractOptions) -> tuple[dict[str, Any], bytes]:
    """A page's reply. The CPU timer runs from here to here; when it fires the process ends."""
    from trafilatura.meta import reset_caches

    signal.setitimer(signal.ITIMER_PROF, options.cpu_seconds)
    try:
        found = extract_page(payload, request["url"], request["charset"], request["captured"], options)
        text = found.text.encode("utf-8")
        if len(text) > MAX_REPLY:
            found, text = (
                Extracted(charset=found.charset, reason="too_large", detail=f"{len(text)} bytes of text"),
                b"",
            )
    except MemoryError:
        found, text = Extracted(reason="memory_limit", detail=f"more than {options.memory_mib} MiB"), b""
    reset_caches()
    signal.setitimer(signal.ITIMER_PROF, 0)
    return asdict(replace(found, text="")), text


# The parent.

START_SECONDS = 180
_ENVIRONMENT = {
    "PYTHONHASHSEED": "0",
    "PYTHONDONTWRITEBYTECODE": "1",
    "TZ": "UTC",
    "LC_ALL": "C.UTF-8",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}


class Extractor:
    """A guarded extractor: holds one child, starts it anew when a page has killed it. One page at a time, any thread.

    A context manager; `close` ends the child. A child whose parent dies ends by itself, at the end of its pipe.
    """

    def __init__(self, options: ExtractOptions | None = None) -> None:
        self.options = options or ExtractOptions()
        self.starts = 0
        self._child: subprocess.Popen[bytes] | None = None
        self._pages = 0
        self._lock = threading.Lock()

    def __enter__(self) -> Extractor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """The child's process id while there is one."""
        return self._child.pid if self._child else None

    def extract(self, payload: bytes, url: str = "", charset: str = "", captured: int = 0) -> Extracted:
        """The text of one page, or the reason why not; see `extract_page` for the arguments.

        Raises ExtractorError when a child cannot be started.
        """
        if len(payload) > self.options.max_bytes:
            return Extracted(reason="too_large", detail=f"{len(payload)} bytes")
        request = pack_frame({"url": url, "charset": charset, "captured": captured}, payload)
        with self._lock:
            fresh = self._child is None
            found = self._ask(request)
            if found.reason == "crashed" or (found.reason == "memory_limit" and not fresh):
                self._end()
                found = self._ask(request)
            if found.reason == "memory_limit" or self._pages >= self.options.recycle_pages:
                self._end()
            return found

    def close(self) -> None:
        """End the child. The extractor can be used again and then starts another."""
        with self._lock:
            self._end()

    def _ask(self, request: bytes) -> Extracted:
        child = self._child or self._start()
        self._pages += 1
        try:
            header, body = _exchange(child, request, self.options.wall_seconds)
            worn = bool(header.pop("worn"))
            found = Extracted(**{**header, "text": body.decode("utf-8")})
        except TimeoutError:
            self._end()
            return Extracted(reason="wall_clock", detail=f"no answer in {self.options.wall_seconds:g} s")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            code = self._end(grace=5)
            if code == -signal.SIGPROF:
                return Extracted(reason="cpu_limit", detail=f"more than {self.options.cpu_seconds:g} CPU seconds")
            return Extracted(reason="crashed", detail=f"exit status {code}: {type(error).__name__} {error}"[:300])
        if worn:
            self._end()
        return found

    def _start(self) -> subprocess.Popen[bytes]:
        root = str(Path(__file__).resolve().parents[1])
        paths = [root, *(p for p in sys.path if p and p != root)]
        environment = {**os.environ, **_ENVIRONMENT, "PYTHONPATH": os.pathsep.join(paths)}
        command = [sys.executable, "-P", "-m", "pipelines.extract"]
        with tempfile.TemporaryFile() as errors:
            try:
                self._child = child = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=environment, bufsize=0
                )
                self._pages = 0
                self.starts += 1
                header, _ = _exchange(child, pack_frame(asdict(self.options), b""), START_SECONDS)
                if header.get("ready") is not True:
                    raise ValueError(f"its first words were {str(header)[:200]}")
            except (OSError, ValueError) as error:
                code = self._end(grace=5)
                errors.seek(0)
                said = errors.read().decode("utf-8", "replace").strip()[-1500:]
                raise ExtractorError(
                    f"the extraction worker ({' '.join(command)}) did not start: {error}, exit status {code}. "
                    f"No page was judged. It said: {said or 'nothing'}"
                ) from error
        return child

    def _end(self, grace: float = 0.0) -> int | None:
        """End the child and return its exit status; a child that is ending by itself has `grace` seconds."""
        child, self._child = self._child, None
        if child is None:
            return None
        assert child.stdin is not None
        assert child.stdout is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(grace)
        if child.poll() is None:
            child.kill()
        code = child.wait()
        child.stdin.close()
        child.stdout.close()
        return code


def _exchange(child: subprocess.Popen[bytes], request: bytes, seconds: float) -> tuple[dict[str, Any], bytes]:
    """Send a frame and receive one. Raises TimeoutError when it takes too long, OSError when the child is gone,
    ValueError when what it says is no frame."""
    assert child.stdin is not None
    assert child.stdout is not None
    os.set_blocking(child.stdin.fileno(), False)
    deadline = time.monotonic() + seconds
    poll = select.poll()
    poll.register(child.stdin, select.POLLOUT)
    poll.register(child.stdout, select.POLLIN)
    unsent, reply = memoryview(request), bytearray()
    while (needed := _frame_size(reply)) is None or len(reply) < needed:
        left = deadline - time.monotonic()
        events = dict(poll.poll(max(0, left) * 1000)) if left > 0 else {}
        if not events:
            raise TimeoutError("no answer in time")
        if child.stdout.fileno() in events:
            block = os.read(child.stdout.fileno(), 1 << 20)
            if not block:
                raise BrokenPipeError("it ended")
            reply += block
        elif child.stdin.fileno() in events:
            with contextlib.suppress(BlockingIOError):
                unsent = unsent[os.write(child.stdin.fileno(), unsent[: 1 << 20]) :]
            if not unsent:
                poll.unregister(child.stdin)
    header_size = struct.unpack_from(">I", reply)[0]
    header = json.loads(bytes(reply[8 : 8 + header_size]))
    if not isinstance(header, dict):
        raise ValueError("no JSON object")
    return header, bytes(reply[8 + header_size : needed])


def _frame_size(reply: bytearray) -> int | None:
    """Bytes of the frame that begins here, None while its lengths are not there yet."""
    if len(reply) < 8:
        return None
    header_size, body_size = struct.unpack_from(">II", reply)
    if header_size > 1 << 20 or body_size > MAX_REPLY:
        raise ValueError("the frame is too large")
    return 8 + int(header_size) + int(body_size)


_shared: dict[tuple[int, ExtractOptions], Extractor] = {}


def shared_extractor(options: ExtractOptions) -> Extractor:
    """This process's extractor for these options: tasks that follow one another share its child."""
    key = (os.getpid(), options)
    if key not in _shared:
        _shared[key] = Extractor(options)
        atexit.register(_shared[key].close)
    return _shared[key]


if __name__ == "__main__":
    serve()
