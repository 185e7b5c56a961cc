"""A small world to build corpora from: texts, a link dump, a web archive, an evaluation set, a Wikipedia dump.

Everything the pipeline must catch stands in it once or more, under a name (`PLANTS`) that tests ask for. It is made
of seeded random English sentences, so two worlds of one seed are equal byte for byte.
"""

from __future__ import annotations

import bz2
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pipelines.warc_writer import Capture, capture_records, warcinfo_record
from pipelines.workspace import STATE, Workspace, read_manifest

ROOT = Path(__file__).resolve().parents[2]
CAPTURED = 1_500_000_000  # July 2017
PUBLIC = ("links", "documents", "pages", "evaluation", "wikipedia", "annotations", "corpus", "tokenizer", "shards")
"""The folders of a workspace that equal builds must make equal, every file of them."""

NAMED_BY_CONTENT = re.compile(r"\.[0-9a-f]{16}\.\w+$")
LATER = ("texts/d.jsonl", "archives/two.warc.gz", "dumps/RS_2017-02")
"""Inputs that the smaller world lacks."""

SUBJECTS = "farmer teacher river council engine painter village doctor sailor printer garden captain".split()
VERBS = "carried described followed crossed repaired measured ignored praised painted answered".split()
OBJECTS = "bridge letter harvest market window lantern orchard machine harbour valley museum kitchen".split()
PLACES = "north south hill coast station square forest meadow castle mill road island".split()
ADJECTIVES = "old narrow quiet famous broken green distant heavy early bright wooden careful".split()
JOINS = "while because although before after until since when".split()

FRENCH = (
    "Le conseil de la ville a décidé que les enfants des écoles pourraient visiter le musée pendant les vacances. "
    "Il y avait beaucoup de monde dans les rues et les marchands vendaient des fruits et des légumes du pays. "
)
QUOTED = (
    "the lighthouse keeper counted eleven silver herons above the frozen estuary and wrote their number with "
    "chalk upon the cellar door before midnight"
)


def sentence(rng: random.Random) -> str:
    pick = rng.choice
    return (
        f"The {pick(ADJECTIVES)} {pick(SUBJECTS)} of the {pick(PLACES)} {pick(VERBS)} the {pick(ADJECTIVES)} "
        f"{pick(OBJECTS)} {pick(JOINS)} the {pick(SUBJECTS)} {pick(VERBS)} to the {pick(PLACES)} with "
        f"{rng.randrange(2, 999)} {pick(OBJECTS)}s."
    )


def passage(rng: random.Random, sentences: int = 8) -> str:
    return " ".join(sentence(rng) for _ in range(sentences))


def nearly(text: str) -> str:
    """A text with one word of its middle changed."""
    words = text.split(" ")
    words[len(words) // 2] = "otherwise"
    return " ".join(words)


def page(title: str, text: str, day: str = "2016-03-01") -> bytes:
    half = len(text) // 2
    at = text.index(". ", half) + 1
    return (
        f"<html lang='en'><head><title>{title}</title><meta property='article:published_time' content='{day}'></head>"
        f"<body><nav><a href='/'>Home</a> <a href='/about'>About</a></nav><article><h1>{title}</h1>"
        f"<p>{text[:at]}</p><p>{text[at:]}</p></article><footer>All rights reserved</footer></body></html>"
    ).encode()


def answer(body: bytes, status: str = "200 OK", mime: str = "text/html; charset=utf-8") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {mime}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def warc(captures: Sequence[tuple[str, bytes]]) -> bytes:
    records = [warcinfo_record((("format", "WARC File Format 1.1"),), CAPTURED)]
    for url, response in captures:
        request = f"GET {url} HTTP/1.1\r\n\r\n".encode()
        records.append(capture_records(Capture(url, CAPTURED, request, response)))
    return b"".join(records)


def jsonl(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def dump(articles: Mapping[str, str]) -> bytes:
    pages = "".join(
        f"<page><title>{title}</title><ns>0</ns><id>{i}</id><revision><id>{i}</id><model>wikitext</model>"
        f"<format>text/x-wiki</format><text xml:space='preserve'>{text}</text></revision></page>"
        for i, (title, text) in enumerate(articles.items(), 1)
    )
    namespace = "http://www.mediawiki.org/xml/export-0.11/"
    body = f"<mediawiki xmlns='{namespace}' version='0.11' xml:lang='en'>{pages}</mediawiki>"
    return bz2.compress(body.encode())


# What each planted URL must come to: the reason the corpus gives, "" for kept.
PLANTS = {
    "http://kept.example/first": "",
    "http://kept.example/page": "",
    "http://quoting.example/essay": "",
    "http://unlinked.example/story": "not_linked",
    "http://karma.example/low": "not_linked",
    "http://french.example/ville": "other_language",
    "http://short.example/note": "few_words",
    "http://en.wikipedia.org/wiki/Heron": "wikipedia",
    "http://mirror.example/heron": "wikipedia_mirror",
    "http://copy.example/exact": "exact_duplicate",
    "http://copy.example/near": "near_duplicate",
}


@dataclass(frozen=True)
class World:
    """A folder of inputs and the recipe sections that name them."""

    folder: Path

    def recipe(self, name: str = "recipe.yaml", **changes: Any) -> Path:
        """Write a recipe that takes everything; `changes` replace sections (None leaves one out)."""
        import yaml

        body: dict[str, Any] = {
            "name": "small",
            "inputs": {
                "links": ["dumps/*"],
                "archives": ["archives/*.warc.gz"],
                "texts": ["texts/*.jsonl"],
                "wikipedia": ["wiki.xml.bz2"],
            },
            "evaluation": [{"name": "herons", "path": "herons.jsonl", "format": "jsonl", "id_field": "id"}],
            "corpus": {
                "rules": ["linked", "language", "quality", "wikipedia", "duplicates", "contamination"],
                "contamination": "cut",
            },
            "tokenizer": {"bpe": {"vocab_size": 600}},
            "shards": {"validation": 0.1},
        }
        body.update(changes)
        path = self.folder / name
        path.write_text(yaml.safe_dump({k: v for k, v in body.items() if v is not None}, sort_keys=False))
        return path


def copied(world: World, folder: Path, without: tuple[str, ...] = ()) -> World:
    """The world's inputs again, in another folder, with other file times."""
    for path in sorted(world.folder.rglob("*"), reverse=True):
        name = str(path.relative_to(world.folder))
        if path.is_file() and name not in without and not name.endswith(".yaml"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / name)
    return World(folder)


def make_world(folder: Path, documents: int = 240) -> World:
    """Write the world's inputs; texts in four files a.jsonl … d.jsonl, the planted ones spread over them."""
    rng = random.Random(3)
    folder.mkdir(parents=True)
    plain = [(f"http://site{i % 17}.example/story/{i}", passage(rng, rng.randrange(5, 14))) for i in range(documents)]
    first, heron, third, quoting = (passage(rng, 12) for _ in range(4))
    middle = quoting.index(". ", len(quoting) // 2) + 2
    planted = {
        "http://kept.example/first": first,
        "http://quoting.example/essay": f"{quoting[:middle]}{QUOTED}. {quoting[middle:]}",
        "http://unlinked.example/story": passage(rng),
        "http://karma.example/low": passage(rng),
        "http://french.example/ville": FRENCH * 3,
        "http://short.example/note": "The letter was carried to the old mill and that was the end of it.",
        "http://en.wikipedia.org/wiki/Heron": heron,
        "http://mirror.example/heron": f"{sentence(rng)} {heron}",
        "http://copy.example/exact": first,
        "http://copy.example/near": nearly(third),
        "http://kept.example/page": third,
    }
    files: dict[str, list[dict[str, Any]]] = {name: [] for name in ("a", "b", "c", "d")}
    rows = [*plain, *((url, text) for url, text in planted.items() if url != "http://kept.example/page")]
    for i, (url, text) in enumerate(rows):
        files["abcd"[i % 4]].append({"url": url, "text": text, "title": f"Story {i}", "date": "2016-05-04"})
    files["b"].append({"text": passage(rng), "id": "own"})
    (folder / "texts").mkdir()
    for name, body in files.items():
        broken = b'{"text": "cut off\n' if name == "c" else b""
        (folder / "texts" / f"{name}.jsonl").write_bytes(jsonl(body) + broken)

    captures = [(f"http://paper{i % 5}.example/{i}", answer(page(f"Paper {i}", passage(rng, 9)))) for i in range(12)]
    captures += [
        ("http://kept.example/page", answer(page("The page", third))),
        ("http://gone.example/", answer(page("Not found", passage(rng)), "404 Not Found")),
        ("http://empty.example/", answer(b"<html><body></body></html>")),
        ("http://picture.example/p.png", answer(b"\x89PNG\r\n", mime="image/png")),
        ("http://clock.example/dateless", answer(page("Clock", passage(rng), "Sunday").replace(b"Sunday", b""))),
    ]
    (folder / "archives").mkdir()
    (folder / "archives" / "one.warc.gz").write_bytes(warc(captures[:9]))
    (folder / "archives" / "two.warc.gz").write_bytes(warc(captures[9:]))
    (folder / "archives" / "cut.warc.gz").write_bytes(warc(captures[:2])[:-300])

    named = [url for url, _ in [*rows, *captures] if url != "http://unlinked.example/story"]
    posts = [
        {
            "url": url.replace("http://", "https://www.") if i % 7 == 0 and "wikipedia" not in url else url,
            "score": {"http://karma": 1, "http://kept.": 70}.get(url[:12], 3 + i % 50),
            "subreddit": f"sub{i % 5}",
            "created_utc": CAPTURED + i,
            "id": f"t{i}",
            "is_self": False,
        }
        for i, url in enumerate(named)
    ]
    posts += [{**posts[0], "score": 77, "id": "again"}, {**posts[0], "is_self": True, "id": "self"}]
    posts.append({**posts[0], "url": "https://www.youtube.com/watch?v=1", "id": "blocked"})
    posts.append({**posts[0], "url": "http://nowhere.example/lost", "id": "lost"})
    (folder / "dumps").mkdir()
    (folder / "dumps" / "RS_2017-01").write_bytes(jsonl(posts[: len(posts) // 2]))
    (folder / "dumps" / "RS_2017-02").write_bytes(jsonl(posts[len(posts) // 2 :]))

    (folder / "herons.jsonl").write_bytes(
        jsonl([{"id": "quoted", "text": QUOTED}, {"id": "absent", "text": passage(random.Random(9), 2)}])
    )
    (folder / "wiki.xml.bz2").write_bytes(dump({"Heron": heron, "Mill": passage(rng), "Orchard": passage(rng)}))
    return World(folder)


def hashes(workspace: Path, folders: Sequence[str] = PUBLIC) -> dict[str, str]:
    """sha256 of every file of a workspace's public folders, by relative path."""
    return {
        str(path.relative_to(workspace)): hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in folders
        for path in sorted((workspace / folder).rglob("*"))
        if path.is_file()
    }


def differences(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """Paths that two hashings do not share with equal content."""
    return sorted(
        f"{path} ({'changed' if path in one and path in other else 'only in one'})"
        for path in one.keys() | other.keys()
        if one.get(path) != other.get(path)
    )


def stamps(workspace: Path) -> dict[str, tuple[int, int]]:
    """(inode, mtime) of every file whose name tells its content: what is not rewritten keeps both."""
    return {
        str(path.relative_to(workspace)): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in workspace.rglob("*")
        if NAMED_BY_CONTENT.search(path.name) and ".state" not in path.parts
    }


def disbelieved(workspace: Path) -> list[str]:
    """Files that some manifest names and that are not there byte for byte; manifests that cannot be read."""
    opened = Workspace.open(workspace)
    found = []
    for path in opened.list(f"{STATE}/manifests"):
        manifest = read_manifest(opened, path.removeprefix(f"{STATE}/manifests/").removesuffix(".json"))
        for file in (file for files in manifest.tables.values() for file in files) if manifest else ():
            here = workspace / file.path
            if not here.exists() or hashlib.sha256(here.read_bytes()).hexdigest() != file.sha256:
                found.append(file.path)
    return found


def webtext(*arguments: str | Path, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, to its end."""
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
        cwd=ROOT,
        check=False,
    )
    return done


def build(recipe: Path, workspace: Path, *more: str) -> None:
    """Build in this process, with one worker."""
    from pipelines.cli import main

    assert main(["build", str(recipe), "--workspace", str(workspace), "--workers", "1", "-q", *more]) == 0


@dataclass(frozen=True)
class Tools:
    """What the build tests share; a fixture, because test folders are no packages."""

    hashes: Callable[..., dict[str, str]] = hashes
    differences: Callable[..., list[str]] = differences
    stamps: Callable[..., dict[str, tuple[int, int]]] = stamps
    disbelieved: Callable[..., list[str]] = disbelieved
    copied: Callable[..., World] = copied
    webtext: Callable[..., subprocess.CompletedProcess[str]] = webtext
    build: Callable[..., None] = build
    plants: Mapping[str, str] = field(default_factory=lambda: PLANTS)
    later: tuple[str, ...] = LATER
    root: Path = ROOT


@pytest.fixture(scope="session")
def tools() -> Tools:
    return Tools()


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """The small world's inputs; tests add recipes beside them and change nothing else."""
    return make_world(tmp_path_factory.mktemp("world") / "inputs")


@pytest.fixture(scope="session")
def built(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished workspace of the small world. Never write to it: copy it."""
    workspace = tmp_path_factory.mktemp("built") / "workspace"
    build(world.recipe(), workspace)
    return workspace


@pytest.fixture(scope="session")
def smaller(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[World, Path]:
    """The world without some of its inputs, and its finished workspace. Recipes may be added."""
    folder = tmp_path_factory.mktemp("smaller")
    part = copied(world, folder / "inputs", without=LATER)
    build(part.recipe(), folder / "ws", "--until", "shards")
    return part, folder / "ws"
