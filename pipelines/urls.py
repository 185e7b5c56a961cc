"""What a URL identifies: one canonical form for links and pages, and the names inside a host.

Parsing follows the WHATWG URL Standard (url.spec.whatwg.org, the rules browsers use) for http and https without a
base. The canonical form is an identity, not an address: it is what links are merged by and pages are joined by; the
original spelling is kept beside it for fetching. Two spellings are one page when they differ only in

* scheme http or https, and a port that is the default of either (one site moved to https, the dumps hold both);
* a leading `www.` before a registrable name, the case of the host, a trailing dot, IDN against punycode (UTS 46);
* percent-encoding that RFC 3986 §6.2.2 calls equivalent (hex case, unreserved characters), or of a character that a
  path may hold either way (`(`, `)`, `!`, `*`, `'`, `,`, `:`, `@`: `%28` for `(` is common in posts);
* dot segments (RFC 3986 §5.2.4) and trailing slashes of the path;
* the order of query keys (equal keys keep their order), empty pieces of a query, and tracking keys, which are known
  by exact name (tracking_keys.txt), never by prefix;
* the fragment, which never reaches a server.

Everything else is kept: other subdomains (`m.`, `en.`), index pages, case of the path, inner double slashes, and
every other query key. URLs with a user name or password are refused: they do not name a public page.
"""

from __future__ import annotations

import re
from collections.abc import Set
from functools import cache, lru_cache
from importlib.util import find_spec
from ipaddress import IPv6Address
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote_from_bytes, unquote_to_bytes

MAX_URL = 4096
"""Characters of a URL, before and after; servers refuse earlier (RFC 9110 §4.1 asks them for 8000 octets)."""


class Parsed(NamedTuple):
    """The parts the WHATWG parser gives; `host` serialised, `port` "" if the scheme's default, query without "?"."""

    scheme: str
    credentials: bool
    host: str
    port: str
    path: str
    query: str


class Refused(ValueError):
    """Why a string is no usable URL, as a ledger's reason."""


_TRIM = "".join(map(chr, range(0x21)))
_NEWLINES = str.maketrans("", "", "\t\n\r")
_URL = re.compile(r"(?s)([A-Za-z][A-Za-z0-9+.\-]*):[/\\]*([^/\\?#]*)([^?#]*)(?:\?([^#]*))?")
_SCHEMES = {"http": "80", "https": "443"}
_DEFAULT_PORTS = ("", "80", "443")
_PLAIN_HOST = re.compile(r"[a-z0-9_\-]+(?:\.[a-z0-9_\-]+)*\.[a-z][a-z0-9\-]*[a-z]")
_FORBIDDEN = re.compile(r"[\x00-\x20#%/:<>?@\[\\\]^|\x7f]")
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9a-fA-F]*")


def _ipv4_number(text: str) -> int:
    if not _NUMBER.fullmatch(text):
        raise Refused("bad_host")
    if text[:2] in ("0x", "0X"):
        return int(text[2:] or "0", 16)
    if len(text) > 1 and text[0] == "0":
        if not re.fullmatch("[0-7]+", text):
            raise Refused("bad_host")
        return int(text, 8)
    return int(text)


def _ipv4(host: str) -> str:
    """A host that ends in a number is an IPv4 address in any of its spellings, or nothing."""
    parts = host.removesuffix(".").split(".")
    if len(parts) > 4 or len(host) > 255:
        raise Refused("bad_host")
    numbers = [_ipv4_number(part) for part in parts]
    if any(n > 255 for n in numbers[:-1]) or numbers[-1] >= 256 ** (5 - len(numbers)):
        raise Refused("bad_host")
    value = numbers[-1] + sum(n << 8 * (3 - i) for i, n in enumerate(numbers[:-1]))
    return ".".join(str(value >> shift & 255) for shift in (24, 16, 8, 0))


def _ipv6(text: str) -> str:
    try:
        address = IPv6Address(text)
    except ValueError:
        raise Refused("bad_host") from None
    if address.scope_id is not None:
        raise Refused("bad_host")
    groups = [f"{int.from_bytes(address.packed[i : i + 2]):x}" for i in range(0, 16, 2)]
    runs = [(len(run), -i) for i in range(8) if (run := _zeros(groups[i:])) and len(run) > 1]
    if not runs:
        return f"[{':'.join(groups)}]"
    length, start = max(runs)
    return f"[{':'.join(groups[:-start])}::{':'.join(groups[length - start :])}]"


def _zeros(groups: list[str]) -> list[str]:
    return groups[: next((i for i, group in enumerate(groups) if group != "0"), len(groups))]


def _to_ascii(host: str) -> str:
    """UTS 46 non-transitional mapping and punycode, as browsers do it (underscores and symbols allowed)."""
    import idna

    try:
        mapped = idna.uts46_remap(host, std3_rules=False, transitional=False)
        labels = [_label(label) for label in mapped.split(".")]
    except (idna.IDNAError, UnicodeError) as error:
        raise Refused("bad_host") from error
    return ".".join(labels)


def _label(label: str) -> str:
    import idna

    unicode_label = label
    if label.startswith("xn--"):
        unicode_label = label[4:].encode("ascii").decode("punycode")
        if unicode_label.isascii() or idna.uts46_remap(unicode_label, False, False) != unicode_label:
            raise Refused("bad_host")
    if unicode_label.isascii():
        return label
    idna.check_initial_combiner(unicode_label)
    idna.check_bidi(unicode_label)
    for i, character in enumerate(unicode_label):
        if character in "\u200c\u200d" and not idna.valid_contextj(unicode_label, i):
            raise Refused("bad_host")
    return "xn--" + unicode_label.encode("punycode").decode("ascii")


@lru_cache(maxsize=1 << 16)
def _host(raw: str) -> str:
    """The WHATWG host parser, serialised; a domain keeps a trailing dot."""
    lower = raw.lower() if raw.isascii() else raw
    if _PLAIN_HOST.fullmatch(lower) and len(lower) <= 255 and "xn--" not in lower:
        return lower
    if raw.startswith("["):
        if not raw.endswith("]"):
            raise Refused("bad_host")
        return _ipv6(raw[1:-1])
    try:
        decoded = unquote_to_bytes(raw).decode("utf-8")
    except UnicodeDecodeError:
        raise Refused("bad_host") from None
    name = decoded.lower() if decoded.isascii() else _to_ascii(decoded)
    if not name or _FORBIDDEN.search(name):
        raise Refused("bad_host")
    last = name.removesuffix(".").rpartition(".")[2]
    return _ipv4(name) if last.isdigit() or re.fullmatch("0x[0-9a-f]*", last) else name


_DOT = re.compile(r"\.|%2[eE]")
_DOTS = re.compile(r"(?:\.|%2[eE]){2}")


def _segments(path: str) -> str:
    """Resolve `.` and `..` segments, in any spelling; the path begins with a slash."""
    out: list[str] = []
    parts = path[1:].split("/")
    for i, part in enumerate(parts):
        last = i == len(parts) - 1
        if _DOTS.fullmatch(part):
            del out[-1:]
            if last:
                out.append("")
        elif _DOT.fullmatch(part):
            if last:
                out.append("")
        else:
            out.append(part)
    return "/" + "/".join(out)


_PATH_SAFE = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~".translate({ord(c): None for c in '"#<>?^`{}'})
_QUERY_SAFE = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~".translate({ord(c): None for c in "\"#<>'"})
_CLEAN_PATH = re.compile(r"[A-Za-z0-9!$%&'()*+,\-./:;=@\[\\\]_|~]*")
_CLEAN_QUERY = re.compile(r"[A-Za-z0-9!$%&()*+,\-./:;=?@\[\\\]^_`{|}~]*")


def trimmed(url: str) -> str:
    """A URL without what every parser ignores: controls and spaces around it, tabs and line ends inside."""
    url = url.strip(_TRIM)
    return url.translate(_NEWLINES) if "\n" in url or "\t" in url or "\r" in url else url


def parse(url: str) -> Parsed:
    """Parse as the WHATWG URL Standard does for http and https without a base URL; raises Refused with a reason."""
    if len(url) > MAX_URL:
        raise Refused("too_long")
    url = trimmed(url)
    if not url.isascii():
        url = url.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    match = _URL.match(url)
    if match is None:
        raise Refused("no_scheme")
    scheme = match[1].lower()
    if scheme not in _SCHEMES:
        raise Refused("not_http")
    credentials, _, authority = match[2].rpartition("@")
    bracket = authority.rfind("]")
    name, colon, port = authority[bracket + 1 :].partition(":")
    name = authority[: bracket + 1] + name
    if not name:
        raise Refused("no_host")
    host = _host(name)
    if colon and port:
        if not (port.isascii() and port.isdigit()) or len(port.lstrip("0")) > 5 or int(port) > 65535:
            raise Refused("bad_port")
        port = str(int(port))
    port = "" if port == _SCHEMES[scheme] else port
    path = match[3].replace("\\", "/") or "/"
    if not _CLEAN_PATH.fullmatch(path):
        path = quote_from_bytes(path.encode(), _PATH_SAFE)
    if "/." in path or "%2" in path:
        path = _segments(path)
    query = match[4] or ""
    if not _CLEAN_QUERY.fullmatch(query):
        query = quote_from_bytes(query.encode(), _QUERY_SAFE)
    return Parsed(scheme, credentials not in ("", ":"), host, port, path, query)


_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})?")
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_PATH_PLAIN = _UNRESERVED | frozenset("()!*',:@")


def _normal_path(match: re.Match[str]) -> str:
    if match[1] is None:
        return "%25"
    character = chr(int(match[1], 16))
    return character if character in _PATH_PLAIN else f"%{match[1].upper()}"


def _normal_query(match: re.Match[str]) -> str:
    if match[1] is None:
        return "%25"
    character = chr(int(match[1], 16))
    return character if character in _UNRESERVED else f"%{match[1].upper()}"


def _query(query: str) -> str:
    if "%" in query:
        query = _ESCAPE.sub(_normal_query, query)
    pieces = [(piece.partition("=")[0], piece) for piece in query.split("&") if piece]
    kept = sorted((pair for pair in pieces if pair[0] not in tracking_keys()), key=itemgetter(0))
    return "&".join(piece for _, piece in kept)


def identify(url: str) -> tuple[str, str]:
    """(canonical URL, "") or ("", reason); never raises, whatever the string.

    Reasons: too_long, no_scheme, not_http, credentials, no_host, bad_host, bad_port.
    """
    try:
        parsed = parse(url)
    except Refused as refused:
        return "", str(refused)
    if parsed.credentials:
        return "", "credentials"
    host = _bare(parsed.host)
    if not host:
        return "", "bad_host"
    port = "" if parsed.port in _DEFAULT_PORTS else f":{parsed.port}"
    path = parsed.path
    if "%" in path:
        path = _segments(_ESCAPE.sub(_normal_path, path))
    path = path.rstrip("/") or "/"
    query = _query(parsed.query) if parsed.query else ""
    key = f"http://{host}{port}{path}?{query}" if query else f"http://{host}{port}{path}"
    return (key, "") if len(key) <= MAX_URL else ("", "too_long")


def canonical(url: str) -> str | None:
    """The identity of a link or page, or None where there is none (`identify` says why).

    Always begins with `http://`; idempotent: canonical(canonical(u)) == canonical(u).
    """
    return identify(url)[0] or None


@lru_cache(maxsize=1 << 16)
def _bare(name: str) -> str:
    """A host without its trailing dot and without `www.` where a registrable name follows."""
    name = name.removesuffix(".")
    if name.endswith(".") or ".." in name or name.startswith("."):
        return ""
    while name.startswith("www.") and registered_domain(name[4:]) and not _address(name[4:]):
        name = name[4:]
    return name


def _address(name: str) -> bool:
    return name.startswith("[") or name.rpartition(".")[2].isdigit()


_CANONICAL_HOST = re.compile(r"http://(?!www\.)([a-z0-9\-]+(?:\.[a-z0-9\-]+)*\.[a-z]{2,})(?=[:/])")


def host(url: str) -> str:
    """The host of any URL as its canonical form writes it; "" if it has none."""
    if match := _CANONICAL_HOST.match(url):
        return match[1]
    authority = identify(url)[0][len("http://") :].partition("/")[0]
    name, bracket, _ = authority.partition("]")
    return name + bracket if bracket else authority.partition(":")[0]


@cache
def tracking_keys() -> frozenset[str]:
    return words("tracking_keys.txt")


def words(name: str) -> frozenset[str]:
    """The words of a list that lies beside this file; `#` begins a comment line."""
    lines = (Path(__file__).parent / name).read_text("utf-8").splitlines()
    return frozenset(word for line in lines if not line.startswith("#") for word in line.split())


@cache
def _suffixes() -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    """Rules, wildcard rules and exceptions of the ICANN section of the public suffix list, in punycode.

    The list lies inside the `tld` package, so its version pins it; nothing is ever fetched.
    """
    spec = find_spec("tld")
    if spec is None or spec.origin is None:
        raise RuntimeError(
            "the package `tld`, which carries the public suffix list, is not installed: pip install tld"
        )
    text = (Path(spec.origin).parent / "res" / "effective_tld_names.dat.txt").read_text("utf-8")
    section = text.partition("===BEGIN ICANN DOMAINS===")[2].partition("// ===END ICANN DOMAINS===")[0]
    rules = [line.split()[0] for line in section.splitlines() if line.strip() and not line.startswith("//")]
    rules = [rule if rule.isascii() else _to_ascii(rule) for rule in rules if not rule.startswith("===")]
    return (
        frozenset(rule for rule in rules if rule[0] not in "*!"),
        frozenset(rule[2:] for rule in rules if rule.startswith("*.")),
        frozenset(rule[1:] for rule in rules if rule.startswith("!")),
    )


@lru_cache(maxsize=1 << 16)
def registered_domain(name: str) -> str:
    """The public suffix and one label (`bbc.co.uk` of `news.bbc.co.uk`), "" if the name is itself a public suffix.

    The algorithm of publicsuffix.org over the ICANN section: `foo.blogspot.com` lies under `blogspot.com`. An IP
    address is its own. `name` is a host as `host` gives it.
    """
    if _address(name):
        return name
    plain, wild, exceptions = _suffixes()
    labels = name.split(".")
    for i in range(len(labels)):
        rest = ".".join(labels[i:])
        if rest in exceptions:
            return rest
        if rest in plain or (i + 1 < len(labels) and ".".join(labels[i + 1 :]) in wild):
            return ".".join(labels[i - 1 :]) if i else ""
    return ".".join(labels[-2:]) if len(labels) > 1 else ""


def is_blocked(url: str, domains: Set[str]) -> bool:
    """Whether the URL's host is one of `domains` or lies under one (`i.imgur.com` under `imgur.com`)."""
    name = host(url)
    return name in domains or any(name[i + 1 :] in domains for i, character in enumerate(name) if character == ".")


def extension(url: str) -> str:
    """The file extension of a canonical URL's path in lower case, without the dot; "" if there is none."""
    path = re.split(r"[?#]", url, maxsplit=1)[0].partition("://")[2].partition("/")[2]
    stem, dot, ending = path.rpartition("/")[2].partition(";")[0].rpartition(".")
    return ending.lower() if dot and stem and ending.isalnum() and ending.isascii() and len(ending) <= 10 else ""
