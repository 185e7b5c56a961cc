"""Tokenizer files: `tokenizer.json` as `tokenizers` and `transformers` read it, and `vocab.json` with `merges.txt` as
GPT-2 was released (`encoder.json`, `vocab.bpe`).

A file read may come from anywhere: whatever is wrong with it is one ValueError that names the file.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, TypeAlias, TypeVar

from tokenizer.vocabulary import END_OF_TEXT, Vocabulary, read_token, write_token

MAX_FILE: Final = 1 << 28  # bytes; GPT-2's files have one million
PAIRED: Final = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
HEADER: Final = "#version: 0.2"

Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"
T = TypeVar("T")


def tokenizer_files(vocabulary: Vocabulary) -> dict[str, bytes]:
    """The three files of a vocabulary by name; equal vocabularies give equal bytes. Raises ValueError for specials
    other than at the end, which the formats cannot tell from text."""
    specials = tuple(range(vocabulary.size - len(vocabulary.specials), vocabulary.size))
    if tuple(sorted(vocabulary.specials)) != specials:
        raise ValueError("special tokens must come after all others")
    spelled = _spelled(vocabulary)
    ids = {token: place for place, token in enumerate(spelled)}
    merges = [[spelled[left], spelled[right]] for left, right in vocabulary.merges]
    lines = [HEADER, *(f"{left} {right}" for left, right in merges)]
    return {
        "tokenizer.json": _json_bytes(_tokenizer_json(vocabulary, ids, merges), indent=1),
        "vocab.json": _json_bytes(ids),
        "merges.txt": ("\n".join(lines) + "\n").encode("utf-8"),
    }


def save_vocabulary(vocabulary: Vocabulary, folder: str | Path) -> None:
    """Writes the three files of a vocabulary into a local folder, which is made if it is not there."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, data in tokenizer_files(vocabulary).items():
        (Path(folder) / name).write_bytes(data)


def _spelled(vocabulary: Vocabulary) -> list[str]:
    specials = set(vocabulary.specials)
    return [
        token.decode("utf-8") if place in specials else write_token(token)
        for place, token in enumerate(vocabulary.tokens)
    ]


def _json_bytes(value: object, indent: int | None = None) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=indent) + "\n").encode("utf-8")


def _tokenizer_json(vocabulary: Vocabulary, ids: dict[str, int], merges: list[list[str]]) -> dict[str, object]:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [
        {"id": place, "content": vocabulary.tokens[place].decode("utf-8"), **flags}
        for place in sorted(vocabulary.specials)
    ]
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": ids,
        "merges": merges,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": {**byte_level, "trim_offsets": False},
        "decoder": byte_level,
        "model": model,
    }


def read_vocabulary(path: str | Path) -> Vocabulary:
    """The vocabulary of a `tokenizer.json`, of a `vocab.json` or `encoder.json` (its merges beside it), or of a
    folder with such files, `tokenizer.json` first. Raises ValueError, naming the file, for what is not a byte-level
    BPE with GPT-2's pretokens, and FileNotFoundError where there is no file."""
    path = Path(path)
    if path.is_dir():
        names = ["tokenizer.json", *(vocab for vocab, _ in PAIRED)]
        found = [path / name for name in names if (path / name).is_file()]
        if not found:
            raise FileNotFoundError(f"{path}: no tokenizer here; looked for {', '.join(names)}")
        path = found[0]
    for vocab, merges in PAIRED:
        if path.name == vocab:
            return read_pair(path, path.with_name(merges))
    data = _read(path)
    return _named(path, lambda: parse_tokenizer_json(data))


def read_pair(vocab: str | Path, merges: str | Path) -> Vocabulary:
    """The vocabulary of GPT-2's two files."""
    ids_data, lines_data = _read(Path(vocab)), _read(Path(merges))
    ids = _named(Path(vocab), lambda: _read_ids(_parse_json(ids_data)))
    pairs = _named(Path(merges), lambda: _parse_merges(lines_data))
    both = f"{vocab} with {Path(merges).name}"
    return _named(
        both, lambda: _vocabulary(ids, pairs, {END_OF_TEXT: ids[END_OF_TEXT]} if END_OF_TEXT in ids else {})
    )


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(MAX_FILE + 1)
    if len(data) > MAX_FILE:
        raise ValueError(f"{path}: larger than {MAX_FILE} bytes, which no tokenizer file is")
    return data


def _named(path: Path | str, parse: Callable[[], T]) -> T:
    try:
        return parse()
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from error


def _parse_json(data: bytes) -> Json:
    """Strict JSON: one value of each name."""

    def distinct(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
        value = dict(pairs)
        if len(value) < len(pairs):
            times = Counter(name for name, _ in pairs)
            twice = next(name for name in times if times[name] > 1)
            raise ValueError(f"the name {twice!r:.80} is there twice")
        return value

    try:
        value: Json = json.loads(data.decode("utf-8"), object_pairs_hook=distinct)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: {error}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from error
    except RecursionError as error:
        raise ValueError("not a tokenizer: its JSON is nested too deeply") from error
    return value


def _read_ids(value: Json) -> dict[str, int]:
    if not isinstance(value, dict):
        raise ValueError(f"the vocabulary must be an object of tokens and ids, not {_kind(value)}")
    ids: dict[str, int] = {}
    for token, number in value.items():
        if type(number) is not int:
            raise ValueError(f"the id of {token!r:.80} must be a whole number, not {_kind(number)}")
        ids[token] = number
    return ids


def _parse_merges(data: bytes) -> list[tuple[str, str]]:
    try:
        lines = data.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: {error}") from error
    first = 1 if lines[0].startswith("#version") else 0
    last = len(lines) - 1 if not lines[-1] else len(lines)
    return [_pair(line.rstrip("\r"), f"line {place + 1}") for place, line in enumerate(lines[first:last], first)]


def _pair(value: Json, place: str) -> tuple[str, str]:
    parts = value.split(" ") if isinstance(value, str) else value
    if not isinstance(parts, list) or len(parts) != 2:
        raise ValueError(f"{place} must name two tokens, not {value!r:.80}")
    left, right = parts
    if not isinstance(left, str) or not isinstance(right, str) or not left or not right:
        raise ValueError(f"{place} must name two tokens, not {value!r:.80}")
    return left, right


def parse_tokenizer_json(data: bytes) -> Vocabulary:
    """The vocabulary in the bytes of a `tokenizer.json`. Raises ValueError if it describes another kind of tokenizer:
    its ids would not be the ones this package computes."""
    value = _parse_json(data)
    if not isinstance(value, dict) or not isinstance(value.get("model"), dict):
        raise ValueError('not a tokenizer.json: it has no "model"')
    model = value["model"]
    assert isinstance(model, dict)
    _require(model, "model", {"type": ("BPE", None)})
    for name in ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"):
        _require(model, "model", {name: (None, "", 0.0)})
    _require(model, "model", {"byte_fallback": (False, None), "ignore_merges": (False, None)})
    _require(value, "it", {"normalizer": (None,)})
    _check_pre_tokenizer(value.get("pre_tokenizer"))
    merges = model.get("merges")
    if not isinstance(merges, list):
        raise ValueError(f"the merges must be a list, not {_kind(merges)}")
    pairs = [_pair(merge, f"merge {place}") for place, merge in enumerate(merges)]
    return _vocabulary(_read_ids(model.get("vocab")), pairs, _added_tokens(value.get("added_tokens")))


def _require(value: dict[str, Json], owner: str, allowed: dict[str, tuple[Json, ...]]) -> None:
    for name, values in allowed.items():
        if not any(value.get(name) is each or value.get(name) == each for each in values):
            raise ValueError(
                f"not a byte-level BPE as GPT-2's: {owner} has {name} {json.dumps(value.get(name))[:80]}"
            )


def _check_pre_tokenizer(value: Json) -> None:
    if not isinstance(value, dict):
        raise ValueError("not a byte-level BPE as GPT-2's: its pre_tokenizer is not ByteLevel")
    allowed: dict[str, tuple[Json, ...]] = {"type": ("ByteLevel",), "add_prefix_space": (False,)}
    _require(value, "its pre_tokenizer", {**allowed, "use_regex": (True, None)})


def _added_tokens(value: Json) -> dict[str, int]:
    if value is None:
        return {}
    if not isinstance(value, list):
        raise ValueError(f"added_tokens must be a list, not {_kind(value)}")
    added: dict[str, int] = {}
    for place, token in enumerate(value):
        content = token.get("content") if isinstance(token, dict) else None
        number = token.get("id") if isinstance(token, dict) else None
        if not isinstance(content, str) or not content or type(number) is not int or content in added:
            raise ValueError(f"added token {place} must have a content of its own and a whole id")
        added[content] = number
    return added


def _vocabulary(ids: dict[str, int], merges: Iterable[tuple[str, str]], specials: dict[str, int]) -> Vocabulary:
    for name, number in specials.items():
        if ids.get(name, number) != number:
            raise ValueError(f"{name!r:.80} has two ids, {ids[name]} and {number}")
    every = {**ids, **specials}
    size = len(every)
    spelled = {number: token for token, number in every.items()}
    if len(spelled) < size:
        raise ValueError(f"{size} tokens share {len(spelled)} ids: some id is there twice")
    if size and (min(spelled) != 0 or max(spelled) != size - 1):
        raise ValueError(f"the ids must be 0 to {size - 1}, not {min(spelled)} to {max(spelled)} with gaps")
    tokens = [
        spelled[number].encode("utf-8") if spelled[number] in specials else read_token(spelled[number])
        for number in range(size)
    ]
    return Vocabulary(
        tuple(tokens),
        tuple(_merge_ids(place, pair, ids) for place, pair in enumerate(merges)),
        tuple(specials.values()),
    )


def _merge_ids(place: int, pair: tuple[str, str], ids: dict[str, int]) -> tuple[int, int]:
    for token in pair:
        if token not in ids:
            raise ValueError(f"merge {place} names {token!r:.80}, which is no token")
    return ids[pair[0]], ids[pair[1]]


def _kind(value: Json) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")
