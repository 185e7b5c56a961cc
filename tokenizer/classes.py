"""The class of every code point in GPT-2's pretoken pattern: letter, number, other or space.

`classes.txt` lists the code points that `tokenizers` takes for letters, numbers and white space; ids must be the
reference's, so its Unicode version is ours, whatever Python or `regex` is installed. After an upgrade of `tokenizers`
that moves to a newer Unicode, `python -m tokenizer.classes > classes.txt` writes the list anew; a test compares them.
"""

from __future__ import annotations

import functools
import itertools
import sys
from importlib import resources

import numpy as np
import numpy.typing as npt

LETTER, NUMBER, OTHER, SPACE = 0, 1, 2, 3
NAMES = ("letter", "number", "other", "space")
CODE_POINTS = 0x110000
SURROGATES = range(0xD800, 0xE000)

Classes = npt.NDArray[np.uint8]


@functools.cache
def code_point_classes() -> Classes:
    """uint8[0x200000]: the class of each code point; as long as four bytes of UTF-8 can reach, so that no byte
    sequence, valid or not, reads beyond it. What is not listed is `OTHER`."""
    table = np.full(0x200000, OTHER, np.uint8)
    lines = resources.files(__package__).joinpath("classes.txt").read_text("ascii").splitlines()
    for line in lines:
        if line and not line.startswith("#"):
            name, first, last = line.split()
            table[int(first, 16) : int(last, 16) + 1] = NAMES.index(name)
    table.setflags(write=False)
    return table


def reference_classes() -> Classes:
    """uint8[0x110000]: the class of each code point as `tokenizers`' ByteLevel pre-tokenizer shows it: the pattern
    joins a character to one before it exactly when both are of one class. Takes some seconds."""
    from tokenizers import pre_tokenizers

    split = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str
    samples = (("!", OTHER), ("a", LETTER), ("1", NUMBER), ("\n", SPACE))
    table = np.full(CODE_POINTS, OTHER, np.uint8)
    for code_point in range(CODE_POINTS):
        if code_point not in SURROGATES:
            character = chr(code_point)
            table[code_point] = next(kind for sample, kind in samples if len(split(sample + character)) == 1)
    return table


def write_ranges(table: Classes) -> str:
    """The text of `classes.txt` for uint8[0x110000]: one line a range, in the order of code points."""
    lines = ["# Code points by their class in GPT-2's pattern, as `tokenizers` sees them; all others are `other`."]
    borders = [0, *(np.flatnonzero(np.diff(table)) + 1).tolist(), len(table)]
    for first, end in itertools.pairwise(borders):
        if table[first] != OTHER:
            lines.append(f"{NAMES[table[first]]} {first:04X} {end - 1:04X}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(write_ranges(reference_classes()))
