"""What a site's robots.txt allows: RFC 9309, in Google's reading where the RFC leaves a choice.

Groups for our product token are merged, else those for `*`; the longest matching rule decides, and of equal ones
Allow. A missing file (4xx) allows everything, an unreachable one (5xx, network) nothing, and only the first 500 KiB
count. Crawl-delay is not in the RFC but common; the fetcher honours it up to a bound of its own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import quote_from_bytes, urlsplit

MAX_BYTES = 500 * 1024
MAX_REDIRECTS = 5
_LINE = re.compile(rb"[ \t]*([A-Za-z][A-Za-z -]*?)[ \t]*:[ \t]*([^#\r\n]*)")
_TOKEN = re.compile(r"[A-Za-z_-]+")


@dataclass(frozen=True)
class Rules:
    """What one robots.txt says to one product. rules: (pattern, allow), normalised; crawl_delay: seconds, 0 none."""

    rules: tuple[tuple[str, bool], ...] = ()
    crawl_delay: float = 0.0

    def allows(self, url: str) -> bool:
        """Whether a URL may be fetched; robots.txt itself always may."""
        parts = urlsplit(url)
        path = normalise((parts.path or "/") + (f"?{parts.query}" if parts.query else ""))
        if path == "/robots.txt":
            return True
        best = max(((len(p), allow) for p, allow in self.rules if _matches(p, path)), default=(0, True))
        return best[1]


ALLOW_ALL = Rules()
DISALLOW_ALL = Rules((("/", False),))


def rules_for_status(status: int) -> Rules | None:
    """What an answer without a robots.txt means (RFC 9309 §2.3.1); None where its body is to be parsed."""
    if 200 <= status < 300:
        return None
    return ALLOW_ALL if 300 <= status < 500 and status != 429 else DISALLOW_ALL


def parse_robots(body: bytes, product: str) -> Rules:
    """The rules for one product token. Never raises: what is not a known line is passed over, as the RFC asks."""
    token = product_token(product)
    groups: dict[str, list[tuple[str, bool]]] = {}
    delays: dict[str, float] = {}
    agents: set[str] = set()
    in_rules = False
    for match in _LINE.finditer(_logical_lines(body)):
        field, value = match[1].lower().replace(b"-", b"").replace(b" ", b""), match[2].strip()
        if field in (b"useragent", b"useragents"):
            if in_rules:
                agents, in_rules = set(), False
            agents.add("*" if value.startswith(b"*") else product_token(value.decode("utf-8", "replace")))
        elif field in (b"allow", b"disallow"):
            in_rules = True
            if value:
                rule = (normalise_bytes(value), field == b"allow")
                for agent in agents:
                    groups.setdefault(agent, []).append(rule)
            else:
                for agent in agents:
                    groups.setdefault(agent, [])
        elif field == b"crawldelay":
            in_rules = True
            for agent in agents:
                groups.setdefault(agent, [])
                delays[agent] = _seconds(value)
    chosen = token if token in groups else "*"
    return Rules(tuple(sorted(set(groups.get(chosen, [])))), delays.get(chosen, 0.0))


def product_token(agent: str) -> str:
    """The product token of a user agent: its leading letters, "-" and "_", in lower case."""
    match = _TOKEN.match(agent.strip())
    return match[0].lower() if match else ""


def _logical_lines(body: bytes) -> bytes:
    """At most 500 KiB, without a byte order mark, each line starting after a line end."""
    lines = re.split(rb"[\r\n]+", body[:MAX_BYTES].removeprefix(b"\xef\xbb\xbf"))
    return b"\n".join(line for line in lines if _LINE.match(line))


def _seconds(value: bytes) -> float:
    return float(value) if re.fullmatch(rb"\d{1,6}(\.\d{1,6})?", value) else 0.0


def normalise_bytes(pattern: bytes) -> str:
    return normalise(quote_from_bytes(pattern, safe="!\"#$%&'()*+,/:;<=>?@[\\]^`{|}~-._"))


_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})")
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


@lru_cache(maxsize=4096)
def normalise(path: str) -> str:
    """A path with percent-encodings in one form: unreserved characters bare, the rest in upper-case hex."""
    quoted = (
        path
        if path.isascii()
        else quote_from_bytes(path.encode("utf-8", "replace"), safe="".join(map(chr, range(128))))
    )
    return _ESCAPE.sub(_escape, quoted)


def _escape(match: re.Match[str]) -> str:
    character = chr(int(match[1], 16))
    return character if character in _UNRESERVED else match[0].upper()


def _matches(pattern: str, path: str) -> bool:
    """`*` stands for anything, a final `$` for the end; leftmost matches suffice, so that no pattern is slow."""
    anchored = pattern.endswith("$")
    first, *rest = pattern.removesuffix("$").split("*")
    if not path.startswith(first):
        return False
    if anchored and not rest:
        return path == first
    at = len(first)
    for piece in rest[:-1] if anchored else rest:
        found = path.find(piece, at)
        if found < 0:
            return False
        at = found + len(piece)
    return not anchored or (path.endswith(rest[-1]) and len(path) - len(rest[-1]) >= at)
