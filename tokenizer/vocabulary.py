"""A byte-level BPE vocabulary: GPT-2's (released `encoder.json` and `vocab.bpe`) or one trained here.

Tokens are byte strings; a token is written in files with one printable character a byte (GPT-2's `bytes_to_unicode`).
A new vocabulary numbers its tokens as GPT-2 does: the 256 bytes in the order of these characters, then one token per
merge, then `<|endoftext|>`, always last.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

END_OF_TEXT: Final = "<|endoftext|>"


@functools.cache
def byte_characters() -> tuple[str, ...]:
    """The character that stands for each byte: itself if it is printable Latin-1, otherwise U+0100, U+0101, …"""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = {byte: chr(byte) for byte in printable}
    characters.update({byte: chr(0x100 + place) for place, byte in enumerate(others)})
    return tuple(characters[byte] for byte in range(256))


@functools.cache
def _translation() -> dict[int, str]:
    return dict(enumerate(byte_characters()))


@functools.cache
def _bytes_of_characters() -> dict[int, int]:
    return {ord(character): byte for byte, character in enumerate(byte_characters())}


def base_bytes() -> tuple[int, ...]:
    """The 256 bytes in the order of their ids: sorted by their characters."""
    characters = byte_characters()
    return tuple(sorted(range(256), key=lambda byte: characters[byte]))


def write_token(token: bytes) -> str:
    """A token as files spell it: one character a byte."""
    return token.decode("latin-1").translate(_translation())


def read_token(spelling: str) -> bytes:
    """The bytes of a spelling; ValueError if a character stands for no byte."""
    table = _bytes_of_characters()
    try:
        return bytes([table[ord(character)] for character in spelling])
    except KeyError as error:
        raise ValueError(f"{spelling!r:.80} holds U+{error.args[0]:04X}, which stands for no byte") from None


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id, and merges of ids in their order. `specials` are ids whose bytes are a name, never text.

    Raises ValueError unless the 256 bytes are tokens, no two tokens are equal, and every merge joins two tokens into
    a third, once.
    """

    tokens: tuple[bytes, ...]
    merges: tuple[tuple[int, int], ...]
    specials: tuple[int, ...]

    def __post_init__(self) -> None:
        if not all(0 <= special < len(self.tokens) for special in self.specials):
            raise ValueError(f"a special token's id is not in 0..{len(self.tokens) - 1}")
        names = [self.tokens[special] for special in self.specials]
        if len(set(names)) < len(names):
            raise ValueError("two special tokens have the same name")
        ids = self.ids
        if len(ids) + len(set(self.specials)) < len(self.tokens):
            raise ValueError("two tokens have the same bytes")
        if b"" in ids:
            raise ValueError(f"token {ids[b'']} is empty")
        missing = [byte for byte in range(256) if bytes([byte]) not in ids]
        if missing:
            raise ValueError(
                f"{len(missing)} of the 256 bytes have no token, the first is 0x{missing[0]:02X}; "
                "without them some text cannot be encoded"
            )
        self._check_merges(ids)

    def _check_merges(self, ids: dict[bytes, int]) -> None:
        if len(set(self.merges)) < len(self.merges):
            raise ValueError("two merges join the same pair")
        text = set(ids.values())
        for place, (left, right) in enumerate(self.merges):
            if left not in text or right not in text:
                raise ValueError(f"merge {place} joins ids {left} and {right}, which are not both tokens of text")
            if self.tokens[left] + self.tokens[right] not in ids:
                joined = write_token(self.tokens[left] + self.tokens[right])
                raise ValueError(f"merge {place} makes {joined!r:.80}, which is no token")

    @functools.cached_property
    def ids(self) -> dict[bytes, int]:
        """The id of each token that is text."""
        specials = set(self.specials)
        return {token: place for place, token in enumerate(self.tokens) if place not in specials}

    @property
    def size(self) -> int:
        return len(self.tokens)

    @property
    def end_of_text(self) -> int:
        """The id of `<|endoftext|>`; ValueError if the vocabulary has none."""
        for special in self.specials:
            if self.tokens[special] == END_OF_TEXT.encode():
                return special
        raise ValueError(f"the vocabulary has no {END_OF_TEXT}")

    def prefix(self, size: int) -> Vocabulary:
        """The vocabulary of `size` tokens that the same training would have stopped at: fewer merges."""
        count = size - 257
        if not 0 <= count <= len(self.merges):
            raise ValueError(f"a prefix has between 257 and {257 + len(self.merges)} tokens, not {size}")
        bases = [self.tokens[place] for place in sorted(self.ids[bytes([byte])] for byte in range(256))]
        pairs = [(self.tokens[left], self.tokens[right]) for left, right in self.merges[:count]]
        return new_vocabulary(pairs, bases)


def new_vocabulary(merges: Sequence[tuple[bytes, bytes]], bases: Sequence[bytes] = ()) -> Vocabulary:
    """The vocabulary with these merges, numbered as GPT-2's. `bases`: another order of the 256 bytes."""
    tokens = list(bases) or [bytes([byte]) for byte in base_bytes()]
    ids = {token: place for place, token in enumerate(tokens)}
    pairs: list[tuple[int, int]] = []
    for left, right in merges:
        if left not in ids or right not in ids:
            raise ValueError(
                f"merge {len(pairs)} joins {left!r:.40} and {right!r:.40}, which are not both tokens yet"
            )
        pairs.append((ids[left], ids[right]))
        if left + right not in ids:
            ids[left + right] = len(tokens)
            tokens.append(left + right)
    return Vocabulary((*tokens, END_OF_TEXT.encode()), tuple(pairs), (len(tokens),))
