"""Hits inside a cut are not in the corpus, and the contamination table does not count them."""

from __future__ import annotations

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipelines.contamination import HITS
from pipelines.corpus import SCHEMA
from pipelines.summaries import hits_left

span = st.tuples(st.integers(0, 60), st.integers(1, 12))


Spans = list[tuple[int, int]]


@given(st.lists(st.tuples(st.lists(span, max_size=5), st.lists(span, max_size=4)), max_size=5))
def test_a_hit_stays_unless_it_overlaps_a_cut(rows: list[tuple[Spans, Spans]]) -> None:
    hits, cuts = [], []
    for found, spans in rows:
        hits.append([{"n": 8, "gram": i, "start": a, "end": a + n} for i, (a, n) in enumerate(sorted(found))])
        disjoint: list[dict[str, int]] = []
        for a, n in sorted(spans):
            if not disjoint or a > disjoint[-1]["end"]:
                disjoint.append({"start": a, "end": a + n})
        cuts.append(disjoint)
    got = hits_left(pa.array(hits, HITS.field("hits").type), pa.array(cuts, SCHEMA.field("cuts").type)).to_pylist()
    wanted = [
        [hit for hit in found if not any(hit["start"] < cut["end"] and cut["start"] < hit["end"] for cut in spans)]
        for found, spans in zip(hits, cuts, strict=True)
    ]
    assert got == wanted
