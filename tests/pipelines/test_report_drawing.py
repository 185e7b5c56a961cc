"""Numbers, escaping and figures of the report."""

from __future__ import annotations

import html
import math
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.drawing import (
    UNSEEN,
    Axis,
    Step,
    bars,
    count,
    decimal,
    escape,
    funnel,
    histogram,
    intervals,
    lines,
    log_ticks,
    number,
    percent,
    share_bar,
    short,
    ticks,
)

ANY_TEXT = st.text(st.characters(), max_size=60)


@given(ANY_TEXT)
def test_escaped_text_is_inert_and_keeps_what_can_be_seen(text: str) -> None:
    safe = escape(text)
    assert not set(safe) & set("<>\"'")
    assert not UNSEEN.search(safe)
    safe.encode()
    if not UNSEEN.search(text):
        assert html.unescape(safe) == text


def test_escape_shows_what_acts() -> None:
    assert escape("a\u202eb") == "a⟨U+202E⟩b"
    assert escape("\x00\ud800\x85") == "⟨U+0000⟩⟨U+D800⟩⟨U+0085⟩"
    assert escape("line\r\nline\ttab") == "line\nline\ttab"
    assert escape("شکر\u200cخدا") == "شکر\u200cخدا"  # joiners belong to the writing


def test_numbers() -> None:
    assert count(1234567) == "1\u202f234\u202f567"
    assert decimal(-1234.5) == "\u22121\u202f234.50"
    assert decimal(math.nan) == "–"
    assert [percent(n, 10000) for n in (0, 1, 5000, 9999, 10000)] == [
        "0.0\u202f%",
        "<\u202f0.1\u202f%",
        "50.0\u202f%",
        ">\u202f99.9\u202f%",
        "100.0\u202f%",
    ]
    assert percent(1, 0) == "–"
    assert [short(v) for v in (0, 0.25, 1500, 2e6, -3e9)] == ["0", "0.25", "1.5k", "2M", "\u22123G"]
    assert [number(v) for v in (100, 0.5, 1.005, -0.001, 120.0)] == ["100", "0.5", "1", "0", "120"]


@given(st.floats(-1e9, 1e9), st.floats(1e-3, 1e9), st.integers(2, 12))
def test_ticks_are_few_round_and_inside(low: float, span: float, about: int) -> None:
    high = low + span
    found = ticks(low, high, about)
    assert len(found) <= about + 2
    assert found == sorted(found)
    assert all(low - span * 1e-6 - 1e-9 <= t <= high + span * 1e-6 + 1e-9 for t in found)


@given(st.floats(1e-3, 1e6), st.floats(1.5, 1e6))
def test_log_axis(low: float, factor: float) -> None:
    axis = Axis(low, low * factor, 10, 110, log=True)
    assert axis.at(low) == pytest.approx(10)
    assert axis.at(low * factor) == pytest.approx(110)
    assert axis.at(low * math.sqrt(factor)) == pytest.approx(60)
    assert all(9.9 <= axis.at(t) <= 110.1 for t in log_ticks(axis.low, axis.high))


def drawn(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def rectangles(svg: str, class_: str) -> list[ElementTree.Element]:
    return [e for e in drawn(svg).iter("rect") if e.get("class") == class_ and float(e.get("height", "0")) != 10]


def test_histogram_heights_are_in_proportion() -> None:
    svg = histogram([1, 10, 100, 1000], [("all", [10, 40, 0]), ("kept", [5, 10, 0])], "Lengths", "characters", "n")
    heights = [float(e.get("height", "0")) for e in rectangles(svg, "mark-all")]
    assert heights[1] == pytest.approx(4 * heights[0], rel=0.01)
    assert len(heights) == 2
    assert "10 to 100: 40 (all)" in "".join(drawn(svg).itertext())


def test_bars_show_their_numbers() -> None:
    svg = bars([("en", [2000, 1000]), ("<de>", [500, 0])], ["all", "kept"], "Languages", "documents")
    wide = [float(e.get("width", "0")) for e in rectangles(svg, "mark-all")]
    assert wide[0] == pytest.approx(4 * wide[1], rel=0.01)
    text = "".join(drawn(svg).itertext())
    assert "1\u202f000 / 2\u202f000" in text
    assert "<de>" in text


def steps_of(*numbers: tuple[int, int, int]) -> list[Step]:
    return [
        Step(f"stage {i}", "things", kept + a + b, kept, (("reason <a>", a), ("reason b", b)))
        for i, (kept, a, b) in enumerate(numbers)
    ]


def test_funnel_widths_are_shares() -> None:
    svg = funnel(steps_of((400, 500, 100), (300, 100, 0)), "Funnel")
    first, second = [float(e.get("width", "0")) for e in drawn(svg).iter("rect") if e.get("class") == "flow"]
    assert first == pytest.approx(392 * 0.4)
    assert second == pytest.approx(392 * 0.3)  # goes on at the same scale
    text = "".join(drawn(svg).itertext())
    assert "400 things kept (40.0\u202f%)" in text
    assert "reason <a>" in text


def test_funnel_says_where_it_is_drawn_anew() -> None:
    other = funnel(steps_of((400, 500, 100), (300, 0, 0)), "Funnel")
    assert "another count, drawn anew" in other
    small = funnel(steps_of((10, 900, 90), (10, 0, 0)), "Funnel")
    assert "drawn 100 times as wide from here" in small


def test_funnel_folds_long_lists_without_losing_a_document() -> None:
    drops = tuple((f"reason {i}", i) for i in range(30, 0, -1))
    svg = funnel([Step("corpus", "documents", 465, 0, drops)], "Funnel")
    text = "".join(drawn(svg).itertext())
    assert "22 further reasons" in text
    assert f"{sum(range(1, 23))}" in text


@given(
    st.lists(
        st.tuples(st.integers(0, 10**12), st.lists(st.tuples(ANY_TEXT, st.integers(0, 10**12)), max_size=12)),
        max_size=5,
    )
)
def test_any_funnel_is_well_formed(ledgers: list[tuple[int, list[tuple[str, int]]]]) -> None:
    steps = [Step("s", "u", kept + sum(n for _, n in drops), kept, tuple(drops)) for kept, drops in ledgers]
    svg = funnel(steps, "any")
    assert drawn(svg).tag == "svg"
    assert "nan" not in svg
    assert "inf" not in svg.replace("inform", "")


@given(
    st.lists(st.tuples(st.floats(0, 1e6), st.floats(allow_nan=True, allow_infinity=True, width=32)), max_size=30),
    st.booleans(),
)
def test_any_curve_is_well_formed(points: list[tuple[float, float]], log_x: bool) -> None:
    svg = lines([("a", points), ("b", points[:2])], "Curve", "x", "y", log_x)
    assert drawn(svg).tag == "svg"
    assert '="nan"' not in svg
    assert "inf" not in svg.replace("finite", "")


def test_intervals_and_share_bar() -> None:
    svg = intervals([("PTB", [("8-grams", 1.0, 0.5, 2.0), ("13-grams", 0.0, 0.0, 0.1)]), ("none", [])], "O", "%")
    assert "PTB, 8-grams: 1.00 % (95 % interval 0.50 to 2.00)" in "".join(drawn(svg).itertext())
    assert drawn(intervals([], "O", "%")).tag == "svg"
    widths = [float(e.get("width", "0")) for e in drawn(share_bar(1, 4, 8)).iter("rect")]
    assert widths == [50.0, 12.5]
