"""A user's own texts as a source of documents: JSON lines or arrays, Parquet, plain text, WET; packed or not.

Every row gives exactly one item, a `Text` or a `Rejected` with its reason, in the order of the file; where the file
itself breaks off there is a `Problem`. Text is taken as it stands (line ends, control characters and normal form are
the user's own); only lone surrogates, which no file can hold as UTF-8, become U+FFFD.

A text's URL is its row's own, made canonical. A row without one, or with one that is not a web address, is named
after its place: `text:<input's name>#<id>` where the row has an id, else `text:<input's name>#<row>` with rows
counted from 0, broken ones included, so a text keeps its name when another row is mended.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import date as calendar_day
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from pipelines.archives import ArchiveOptions, Page, Rejected, read_conversions
from pipelines.compression import BrokenStream, open_stream
from pipelines.decode import decode
from pipelines.urls import identify
from pipelines.workspace import Problem

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class TextOptions:
    """How own texts are read.

    format: "auto" goes by the name and, where that says nothing, by the first bytes. text, url, title, date,
    language, id: the field or column each is in. split: what a document is in plain text: the file, a run of lines
    between blank lines, or what stands between `<|endoftext|>` marks. max_bytes: longer lines and texts are rejected.
    """

    format: Literal["auto", "jsonl", "parquet", "plain", "wet"] = "auto"
    text: str = "text"
    url: str = "url"
    title: str = "title"
    date: str = "date"
    language: str = "language"
    id: str = "id"
    split: Literal["file", "blank_line", "end_of_text"] = "file"
    max_bytes: int = 32 << 20

    def __post_init__(self) -> None:
        if self.format not in ("auto", "jsonl", "parquet", "plain", "wet"):
            raise ValueError(f"texts.format must be auto, jsonl, parquet, plain or wet, not {self.format!r}")
        if self.split not in ("file", "blank_line", "end_of_text"):
            raise ValueError(f"texts.split must be file, blank_line or end_of_text, not {self.split!r}")
        if not self.text:
            raise ValueError("texts.text must name the field the text is in")
        if not 1 <= self.max_bytes <= 256 << 20:
            raise ValueError(f"texts.max_bytes must be between 1 and {256 << 20}, not {self.max_bytes}")


@dataclass(frozen=True, slots=True)
class Text:
    """One text. row: its number in the file; offset: of its line or record in unpacked bytes, -1 where a row has
    none (Parquet); fetched_at: unix seconds, 0 unknown (WET says); date: ISO day or "";
    unnamed: the URL is made of the row's number."""

    row: int
    offset: int
    url: str
    title: str
    date: str
    language: str
    text: str
    fetched_at: int = 0
    record_id: str = ""
    unnamed: bool = False


Item = Text | Rejected | Problem

END_OF_TEXT = b"<|endoftext|>"
CHUNK = 1 << 18
HEAD = 1 << 20
"""Packed bytes that are looked at to tell a file's format: a bzip2 block of text and more."""
MAX_LABEL = 1000
"""Characters of a title or id that are kept."""


def text_format(name: str, first: bytes) -> Literal["jsonl", "parquet", "plain", "wet"]:
    """The format of a file by its name (without a packing suffix) and else by its first unpacked bytes, at best
    CHUNK of them: JSON lines are told by a first line that is a JSON object, or begins as one and is longer."""
    bare = re.sub(r"\.(?:gz|zst|xz|bz2)$", "", name.lower())
    if bare.endswith((".jsonl", ".ndjson", ".json")):
        return "jsonl"
    if bare.endswith((".txt", ".text", ".md", ".html", ".htm")):
        return "plain"
    if bare.endswith((".parquet", ".pq")) or first.startswith(b"PAR1"):
        return "parquet"
    if bare.endswith(".wet") or first.startswith(b"WARC/"):
        return "wet"
    line, newline, _ = first.lstrip(b"\xef\xbb\xbf \t\r\n").partition(b"\n")
    if not newline and len(first) >= CHUNK:
        return "jsonl" if re.match(rb'\{\s*"', line) else "plain"
    return "jsonl" if _is_object(line) else "plain"


def _is_object(line: bytes) -> bool:
    try:
        return line.startswith(b"{") and isinstance(json.loads(line.decode("utf-8", "replace")), dict)
    except (ValueError, RecursionError):
        return False


def read_texts(stream: BinaryIO, name: str, options: TextOptions | None = None) -> Iterator[Item]:
    """The texts of one file, in its order, with what was rejected and where it is broken.

    stream: seekable. name: the input's name relative to its root. Memory stays within a few times `max_bytes`; a
    Parquet file's is one batch of a row group. Raises OSError where the stream cannot be read, nothing else.
    """
    options = options or TextOptions()
    head = stream.read(HEAD)
    stream.seek(0)
    kind = options.format if options.format != "auto" else text_format(name, _first_bytes(head, name))
    if kind == "parquet":
        return _parquet(stream, name, options)
    if kind == "wet":
        return _wet(stream, name, options)
    unpacked = open_stream(stream, name)
    if kind == "jsonl":
        split = _elements if _is_array(name, _first_bytes(head, name)) else _lines
        return _jsonl(split(unpacked, name, options.max_bytes), name, options)
    return _plain(unpacked, name, options)


def _first_bytes(head: bytes, name: str) -> bytes:
    """The first unpacked bytes of a file that begins with `head`."""
    try:
        return open_stream(io.BytesIO(head), name).read(CHUNK)
    except BrokenStream:
        return b""


# Lines and other stretches of a stream, bounded.

Stretch = tuple[int, bytes | None]
"""Where it begins in unpacked bytes, and its bytes without the separator; None where it was too long to hold."""


def _lines(stream: io.BufferedIOBase, name: str, limit: int) -> Iterator[Stretch | Problem]:
    return _stretches(stream, name, b"\n", limit)


def _stretches(stream: io.BufferedIOBase, name: str, separator: bytes, limit: int) -> Iterator[Stretch | Problem]:
    """What stands between separators; the last one may be empty. Ends with a Problem where the stream breaks off,
    and what it held of an unfinished stretch is not given: it may be cut in the middle."""
    held, start, searched, too_long = bytearray(), 0, 0, False
    dropped = 0  # bytes of the stretch that begins at `start` and is too long, no longer held
    while True:
        try:
            chunk = stream.read(CHUNK)
        except BrokenStream as error:
            yield Problem(name, "broken_stream", error.offset, error.reason)
            return
        if not chunk:
            break
        held += chunk
        while (end := held.find(separator, max(0, searched - len(separator)))) >= 0:
            yield start, None if too_long or end > limit else bytes(held[:end])
            del held[: end + len(separator)]
            start += dropped + end + len(separator)
            searched, dropped, too_long = 0, 0, False
        if len(held) > limit + len(separator):
            surplus = len(held) - len(separator)
            del held[:surplus]
            dropped, too_long = dropped + surplus, True
        searched = len(held)
    if held or too_long:
        yield start, None if too_long or len(held) > limit else bytes(held)


# JSON lines, and the elements of a JSON array.


def _is_array(name: str, first: bytes) -> bool:
    """Whether JSON is an array of rows, not lines that hold an array each: by the name .json, or `[` before `{`."""
    begin = re.match(rb"(?:\xef\xbb\xbf)?\s*\[\s*(\{?)", first)
    return bool(begin and (begin[1] or re.search(r"\.json(?:\.(?:gz|zst|xz|bz2))?$", name.lower())))


_STRUCTURE = re.compile(rb'["\[\]{},]')
_IN_STRING = re.compile(rb'(?s:[^"\\]++|\\.)*+')
_NOTHING = (b"", b"\xef\xbb\xbf")


def _elements(stream: io.BufferedIOBase, name: str, limit: int) -> Iterator[Stretch | Problem]:
    """The elements of JSON arrays, told by brackets, commas and quotes alone, without the white space around them.
    An object outside an array is one too; what is no JSON comes as elements that do not parse. Ends with a Problem
    where the stream or the array breaks off."""
    held, start, at = bytearray(), 0, 0  # the bytes not given yet, where they begin, how far they were looked at
    depth, quoted, array, dropped_from = 0, False, False, -1

    def take(end: int) -> Stretch:
        """The element that ends at `end`; what was looked at is forgotten."""
        nonlocal start, at, dropped_from
        raw = bytes(held[:end]).lstrip()
        begin = start + end - len(raw) if dropped_from < 0 else dropped_from
        found = begin, raw.rstrip() if dropped_from < 0 and len(raw) <= limit else None
        del held[:at]
        start, at, dropped_from = start + at, 0, -1
        return found

    while True:
        try:
            chunk = stream.read(CHUNK)
        except BrokenStream as error:
            yield Problem(name, "broken_stream", error.offset, error.reason)
            return
        if not chunk:
            break
        held += chunk
        while True:
            if quoted and (inside := _IN_STRING.match(held, at)):
                at = inside.end()
                if held[at : at + 1] != b'"':
                    break  # the string goes on in the next chunk
                at, quoted = at + 1, False
            mark = _STRUCTURE.search(held, at)
            at, sign = (mark.end(), mark[0]) if mark else (len(held), b"")
            if not sign:
                break
            quoted = sign == b'"'
            depth += (sign in b"[{") - (sign in b"]}")
            if sign in b"[{" and depth == 1:
                array = sign == b"["
            ends = (sign in b"]}" and depth <= 0) or (sign == b"," and depth == 1 and array)
            if ends or (sign == b"[" and depth == 1):
                depth = max(0, depth)
                element = take(at - 1 if array else at)
                if sign == b"," or element[1] not in _NOTHING:
                    yield element
        if at > limit + CHUNK:
            dropped_from = start if dropped_from < 0 else dropped_from
            del held[:at]
            start, at = start + at, 0
    at = len(held)
    if (rest := take(at))[1] not in _NOTHING:
        yield rest
    if depth:
        yield Problem(name, "cut_off", start, "the file ends inside its JSON array")


def _jsonl(lines: Iterator[Stretch | Problem], name: str, options: TextOptions) -> Iterator[Item]:
    row = -1
    for line in lines:
        if isinstance(line, Problem):
            yield line
            continue
        row += 1
        offset, raw = line
        yield _json_row(raw, name, row, offset, options)


def _json_row(raw: bytes | None, name: str, row: int, offset: int, options: TextOptions) -> Text | Rejected:
    if raw is None:
        return _reject(name, row, offset, "too_large", f"longer than {options.max_bytes} bytes")
    try:
        decoded = raw.decode("utf-8-sig" if row == 0 else "utf-8")
    except UnicodeDecodeError as error:
        return _reject(name, row, offset, "bad_utf8", f"at byte {error.start} of the line")
    if not decoded.strip():
        return _reject(name, row, offset, "blank", "")
    try:
        fields = json.loads(decoded)
    except (ValueError, RecursionError) as error:
        return _reject(name, row, offset, "bad_json", str(error)[:200])
    if not isinstance(fields, dict):
        return _reject(name, row, offset, "not_object", type(fields).__name__)
    return _from_fields(fields, name, row, offset, options)


def _from_fields(
    fields: Mapping[str, Any], name: str, row: int, offset: int, options: TextOptions
) -> Text | Rejected:
    text = fields.get(options.text)
    if not isinstance(text, str):
        why = f"no field {options.text!r}" if text is None else f"{options.text!r} is {type(text).__name__}"
        return _reject(name, row, offset, "no_text", why)
    return make_text(
        text,
        name,
        row,
        offset,
        url=_string(fields.get(options.url)),
        title=_string(fields.get(options.title)),
        date=_string(fields.get(options.date)),
        language=_string(fields.get(options.language)),
        label=_string(fields.get(options.id)),
    )


def _string(value: Any) -> str:
    """A field that should be text: its text, a number's or a date's digits, else ""."""
    if isinstance(value, str):
        return value
    if hasattr(value, "isoformat"):
        return str(value.isoformat())
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else ""


_SURROGATES = re.compile("[\ud800-\udfff]")
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}(?!\d)")
_LANGUAGE = re.compile(r"[A-Za-z]{2,3}(?![A-Za-z])")


def make_text(
    text: str,
    name: str,
    row: int,
    offset: int,
    *,
    url: str = "",
    title: str = "",
    date: str = "",
    language: str = "",
    label: str = "",
) -> Text | Rejected:
    """A row's text under its name, or why it is none: "no_text" where it holds nothing but white space."""
    if not text.strip():
        return _reject(name, row, offset, "no_text", "empty")
    canonical, _ = identify(url) if url else ("", "")
    place = " ".join(_well_formed(label).split())[:MAX_LABEL]
    tongue = _LANGUAGE.match(language)
    return Text(
        row=row,
        offset=offset,
        url=canonical or f"text:{name}#{place or row}",
        unnamed=not canonical and not place,
        title=" ".join(_well_formed(title).split())[:MAX_LABEL],
        date=_day(date),
        language=tongue.group().lower() if tongue else "",
        text=_well_formed(text),
    )


def _day(text: str) -> str:
    """The ISO day that a date begins with; "" where it begins with none, or with one that never was."""
    found = _DAY.match(text)
    try:
        return calendar_day.fromisoformat(found.group()).isoformat() if found else ""
    except ValueError:
        return ""


def _well_formed(text: str) -> str:
    return _SURROGATES.sub("\ufffd", text)


def _reject(name: str, row: int, offset: int, reason: str, detail: str) -> Rejected:
    return Rejected(f"text:{name}#{row}", "text", offset, reason, detail)


# Parquet.


def _parquet(stream: BinaryIO, name: str, options: TextOptions) -> Iterator[Item]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = 0
    try:
        file = pq.ParquetFile(stream)
        wanted = (options.text, options.url, options.title, options.date, options.language, options.id)
        columns = [column for column in dict.fromkeys(wanted) if column in file.schema_arrow.names]
        if options.text not in columns:
            there = ", ".join(file.schema_arrow.names)[:300]
            yield Problem(name, "no_column", 0, f"texts.text names {options.text!r}; the file has {there}")
            return
        for batch in file.iter_batches(batch_size=256, columns=columns):
            rows = zip(*map(_values, batch.columns), strict=True)
            for fields in (dict(zip(batch.schema.names, values, strict=True)) for values in rows):
                text = fields[options.text]
                if isinstance(text, str) and len(text) > options.max_bytes:
                    yield _reject(name, row, -1, "too_large", f"longer than {options.max_bytes} characters")
                elif isinstance(text, Exception):
                    reason = "bad_utf8" if isinstance(text, UnicodeDecodeError) else "bad_value"
                    yield _reject(name, row, -1, reason, f"{options.text!r}: {str(text)[:200]}")
                else:
                    yield _from_fields(fields, name, row, -1, options)
                row += 1
    except (pa.ArrowException, UnicodeDecodeError, ValueError) as error:
        yield Problem(name, "bad_parquet", -1, f"after row {row}: {str(error)[:300]}")
    except OSError as error:
        if error.errno is not None:
            raise
        yield Problem(name, "bad_parquet", -1, f"after row {row}: {str(error)[:300]}")  # Arrow's own: a bad page


def _values(column: pa.Array) -> list[Any]:
    """A column's values; one that Python has none for (a date beyond year 9999, bytes that are no UTF-8) is given
    as the error it raised, and costs no other. Bytes are text that its writer did not mark as such."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_timestamp(column.type) and column.type.unit == "ns":
        column = column.cast(pa.timestamp("us", column.type.tz), safe=False)  # finer than Python's own dates

    def value(scalar: pa.Scalar) -> Any:
        try:
            found = scalar.as_py()
            return found.decode("utf-8") if isinstance(found, bytes) else found
        except (pa.ArrowException, ArithmeticError, LookupError, ValueError) as error:
            return error

    return [value(scalar) for scalar in column]


# Plain text.


def _plain(stream: io.BufferedIOBase, name: str, options: TextOptions) -> Iterator[Item]:
    if options.split == "file":
        parts = _whole(stream, name, options.max_bytes)
    elif options.split == "end_of_text":
        parts = _stretches(stream, name, END_OF_TEXT, options.max_bytes)
    else:
        parts = _paragraphs(_lines(stream, name, options.max_bytes), options.max_bytes)
    row = 0
    for part in parts:
        if isinstance(part, Problem):
            yield part
            continue
        offset, raw = part
        if raw is None:
            yield _reject(name, row, offset, "too_large", f"longer than {options.max_bytes} bytes; see texts.split")
        elif is_binary(raw):
            yield _reject(name, row, offset, "binary", "zero bytes: a picture or a program, not text")
        elif options.split == "file" or raw.strip():
            yield make_text(_decode_plain(raw), name, row, offset)
        else:
            continue  # nothing between two separators is not a text
        row += 1


def is_binary(raw: bytes) -> bool:
    """Whether bytes are no text: zero bytes among the first 8,000 (git's rule), where no mark says UTF-16 or UTF-32.

    >>> is_binary(b"\\x89PNG\\r\\n\\x1a\\n\\x00\\x00"), is_binary("text".encode("utf-16")), is_binary(b"text")
    (True, False, False)
    """
    return b"\0" in raw[:8000] and not raw.startswith((b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff"))


def _decode_plain(raw: bytes) -> str:
    """UTF-8 as it stands; anything else by `decode`, which also cleans it."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return decode(raw)[0]


def _whole(stream: io.BufferedIOBase, name: str, limit: int) -> Iterator[Stretch | Problem]:
    try:
        raw = stream.read(limit + 1)
        if len(raw) <= limit:
            stream.read(1)  # a stream that breaks off says so only at the next read
    except BrokenStream as error:
        yield Problem(name, "broken_stream", error.offset, error.reason)
        return
    yield 0, raw if len(raw) <= limit else None


def _paragraphs(lines: Iterator[Stretch | Problem], limit: int) -> Iterator[Stretch | Problem]:
    """Runs of lines between lines that hold nothing but white space."""
    held: list[bytes] = []
    start = size = 0
    broken = False
    for line in lines:
        if isinstance(line, Problem):
            yield line
            return
        offset, raw = line
        if raw is not None and not raw.strip():
            if size:
                yield start, None if broken else b"\n".join(held)
            held.clear()
            size, broken = 0, False
            continue
        start = start if size else offset
        size += 1 + (limit if raw is None else len(raw))
        broken = broken or raw is None or size > limit
        if broken or raw is None:
            held.clear()
        else:
            held.append(raw)
    if size:
        yield start, None if broken else b"\n".join(held)


# WET.


def _wet(stream: BinaryIO, name: str, options: TextOptions) -> Iterator[Item]:
    for row, item in enumerate(read_conversions(stream, name, ArchiveOptions(max_payload_bytes=options.max_bytes))):
        if not isinstance(item, Page):
            yield item
            continue
        found = make_text(_decode_plain(item.payload), name, row, item.offset, url=item.url)
        if isinstance(found, Rejected):
            yield found
            continue
        yield replace(found, fetched_at=item.fetched_at, record_id=item.record_id)
