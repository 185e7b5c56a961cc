"""The workspace's promises: canonical bytes, whole or absent, and no belief in what a manifest does not say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.workspace import (
    Manifest,
    PartFile,
    Workspace,
    WorkspaceError,
    iter_part,
    part_id,
    part_key,
    part_metadata,
    read_manifest,
    read_part,
    write_manifest,
    write_part,
)

SCHEMA = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("count", pa.int64(), nullable=False),
        pa.field("hits", pa.list_(pa.field("item", pa.uint32(), nullable=False)), nullable=False),
        pa.field("keep", pa.bool_(), nullable=False),
    ]
)


def some_rows(count: int) -> pa.Table:
    rng = np.random.default_rng(count)
    return pa.table(
        {
            "name": [f"naïve {i}" for i in range(count)],
            "count": rng.integers(0, 1 << 60, count),
            "hits": [list(range(i % 5)) for i in range(count)],
            "keep": rng.integers(0, 2, count).astype(bool),
        }
    ).cast(SCHEMA)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "run", create=True)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 9000), st.lists(st.integers(1, 5000), min_size=1, max_size=5))
def test_bytes_do_not_depend_on_how_rows_are_batched(count: int, sizes: list[int]) -> None:
    import tempfile

    table = some_rows(count)
    batches, at = [], 0
    while at < count:
        for size in sizes:
            batches += table.slice(at, size).to_batches()
            at += size
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace.open(folder)
        whole = write_part(workspace, "documents", "p", table, SCHEMA)
        cut = write_part(workspace, "documents", "p", iter(batches), SCHEMA)
        assert cut == whole
        assert read_part(workspace, whole).equals(table)
        assert sum(batch.num_rows for batch in iter_part(workspace, whole)) == count


def test_logical_hash_tells_rows_apart_that_concatenate_alike(workspace: Workspace) -> None:
    schema = pa.schema([pa.field("s", pa.string(), nullable=False)])
    one = write_part(workspace, "d", "p", pa.table({"s": ["ab", "c"]}, schema), schema)
    other = write_part(workspace, "d", "p", pa.table({"s": ["a", "bc"]}, schema), schema)
    assert one.logical != other.logical


def test_a_part_is_an_ordinary_parquet_file_without_times(workspace: Workspace) -> None:
    file = write_part(workspace, "documents", "p", some_rows(10), SCHEMA, {"webtext.table": "documents"})
    assert pq.read_table(workspace.local_path(file.path)).num_rows == 10
    assert part_metadata(workspace, file) == {"webtext.table": "documents"}
    assert file.path == f"documents/p.{file.sha256[:16]}.parquet"


def test_nulls_are_refused(workspace: Workspace) -> None:
    schema = pa.schema([pa.field("s", pa.string())])
    with pytest.raises(ValueError, match="'s' holds nulls"):
        write_part(workspace, "d", "p", pa.table({"s": ["a", None]}, schema), schema)
    assert workspace.list("d") == []
    assert list(workspace.scratch().iterdir()) == []


def test_a_writer_that_fails_leaves_nothing(workspace: Workspace) -> None:
    def broken():  # type: ignore[no-untyped-def]
        yield from some_rows(5000).to_batches()
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        write_part(workspace, "documents", "p", broken(), SCHEMA)
    assert workspace.list("documents") == []
    assert list(workspace.scratch().iterdir()) == []


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_a_damaged_part_is_noticed_and_named(workspace: Workspace, damage: str) -> None:
    file = write_part(workspace, "documents", "p", some_rows(3000), SCHEMA)
    path = workspace.local_path(file.path)
    data = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    elif damage == "truncate":
        path.write_bytes(data[:-100])
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    with pytest.raises(WorkspaceError, match=r"documents/p\..*\.parquet") as caught:
        read_part(workspace, file)
    assert "build again" in str(caught.value)
    with pytest.raises(WorkspaceError):
        list(iter_part(workspace, file))


def test_manifests_round_trip_and_a_half_commit_is_none(workspace: Workspace) -> None:
    file = write_part(workspace, "documents", "p", some_rows(3), SCHEMA)
    side = write_part(workspace, "pages/positions", "p", some_rows(3), SCHEMA)
    manifest = Manifest("documents", 1, "f" * 64, {"a": 1}, {"pyarrow": "25"}, {"": (file,), "positions": (side,)})
    assert read_manifest(workspace, "documents") is None
    write_manifest(workspace, manifest)
    assert read_manifest(workspace, "documents") == manifest
    public = workspace.read("documents/manifest.json")
    assert b"positions" not in public
    assert b"f" * 64 not in public
    workspace.write(".state/manifests/documents.json", Manifest("documents", 2, "", {}, {}, {}).private())
    assert read_manifest(workspace, "documents") is None


def test_a_manifest_that_is_none_is_named(workspace: Workspace) -> None:
    workspace.write("documents/manifest.json", b"[1, 2]")
    workspace.write(".state/manifests/documents.json", b"{}")
    with pytest.raises(WorkspaceError, match=r"documents/manifest\.json is not a manifest"):
        read_manifest(workspace, "documents")


def test_the_lease_is_exclusive_and_dies_with_its_holder(workspace: Workspace) -> None:
    code = (
        "import sys,time\nfrom pipelines.workspace import Workspace\n"
        f"with Workspace({workspace.url!r}).lease():\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(WorkspaceError, match=f"another build holds .*process {holder.pid}"), workspace.lease():
        pass
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with workspace.lease():
        pass


def test_missing_workspace_says_what_makes_one(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match="webtext build"):
        Workspace.open(tmp_path / "nowhere")


def test_part_ids_depend_on_the_name_alone_and_differ_where_names_do() -> None:
    names = ["a/b.warc.gz", "a_b.warc.gz", "A/b.warc.gz", "é.txt", "x" * 300, "x" * 301, "../.hidden"]
    ids = {part_id(name) for name in names}
    assert len(ids) == len(names)
    assert all(len(i) < 100 and "/" not in i and not i.startswith(".") for i in ids)
    assert 0 <= part_key("a") < 1 << 64
    assert PartFile.of({"part": "p", "path": "x", "rows": 1, "size": 2, "sha256": "s", "logical": "l"}).rows == 1
