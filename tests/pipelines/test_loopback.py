"""The loopback web as an ordinary client sees it."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from pipelines.loopback import LoopbackWeb, Reply


def opener(web: LoopbackWeb) -> urllib.request.OpenerDirector:
    context = ssl.create_default_context(cafile=web.ca_file)
    return urllib.request.build_opener(
        urllib.request.ProxyHandler({"http": web.proxy, "https": web.proxy}),
        urllib.request.HTTPSHandler(context=context),
    )


def test_http_and_https_urls_are_served_under_their_own_names() -> None:
    site = {"http://a.test/x?y=1": b"<p>plain", "https://b.test/": b"<p>secret", "https://b.test:8443/": b"<p>port"}
    with LoopbackWeb(site) as web:
        for url, body in site.items():
            with opener(web).open(url, timeout=10) as answer:
                assert answer.read() == body
                assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
        assert web.urls() == list(site)


def test_a_name_of_any_length_and_an_address_get_certificates() -> None:
    hosts = ["a" * 60 + "." + "b" * 60 + ".test", "192.0.2.7"]
    with LoopbackWeb(lambda url: url.encode()) as web:
        for host in hosts:
            with opener(web).open(f"https://{host}/", timeout=10) as answer:
                assert answer.read() == f"https://{host}/".encode()


def test_what_is_not_there_is_404_and_redirects_redirect() -> None:
    site = {
        "http://a.test/": Reply(302, headers=(("Location", "https://b.test/there"),)),
        "https://b.test/there": b"<p>",
    }
    with LoopbackWeb(site) as web:
        with opener(web).open("http://a.test/", timeout=10) as answer:
            assert answer.url == "https://b.test/there"
        with pytest.raises(urllib.error.HTTPError, match="404"):
            opener(web).open("http://a.test/robots.txt", timeout=10)


def test_chunks_join_and_broken_ones_break() -> None:
    body = b"0123456789" * 350
    site = {
        "http://a.test/1": Reply(body=body, fault="chunked"),
        "http://a.test/2": Reply(body=body, fault="bad_chunks"),
    }
    with LoopbackWeb(site) as web:
        with opener(web).open("http://a.test/1", timeout=10) as answer:
            assert answer.read() == body
        with (
            pytest.raises((http.client.HTTPException, ValueError)),
            opener(web).open("http://a.test/2", timeout=10) as answer,
        ):
            answer.read()


def test_it_listens_on_loopback_only_and_its_authority_is_gone_afterwards() -> None:
    with LoopbackWeb({}) as web:
        host, _, port = web.proxy.removeprefix("http://").rpartition(":")
        assert host == "127.0.0.1"
        assert Path(web.ca_file).exists()
        with socket.create_connection((host, int(port)), timeout=5):
            pass
    assert not Path(web.ca_file).exists()
    with pytest.raises(OSError, match="refused"), socket.create_connection((host, int(port)), timeout=5):
        pass


def test_it_ends_at_once_though_a_client_waits_for_an_answer_that_never_comes() -> None:
    with LoopbackWeb({"http://a.test/": Reply(fault="silent")}) as web:
        host, _, port = web.proxy.removeprefix("http://").rpartition(":")
        waiting = socket.create_connection((host, int(port)), timeout=30)
        waiting.sendall(b"GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n")
    with waiting, contextlib.suppress(ConnectionResetError):
        assert waiting.recv(10) == b""
