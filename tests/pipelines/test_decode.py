"""Decoding: real encodings with and without labels, wrong labels, cut pages, and any bytes at all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.decode import CODECS, clean_text, decode, header_charset

RUSSIAN = "Правительство объявило о новых правилах для путешественников, которые хотят поехать на юг страны летом."
JAPANESE = "日本語のテキストはここにあります。東京は日本の首都であり、世界最大の都市の一つです。とても美しい。"
CHINESE = "中国的首都是北京，这是一个历史悠久的城市，有许多名胜古迹。今天天气很好，我们去公园散步吧。"
KOREAN = "한국어 텍스트가 여기에 있습니다. 서울은 대한민국의 수도이며 가장 큰 도시입니다."
FRENCH = "L’été dernier, les élèves étaient très fiers d’avoir gagné le prix, grâce à leur façon d’écrire."
CZECH = "Všichni lidé rodí se svobodní a sobě rovní co do důstojnosti a práv. Jsou nadáni rozumem a svědomím."


def page(text: str, head: str = "", tag: str = "<html>") -> str:
    return f"<!DOCTYPE html>{tag}<head>{head}<title>x</title></head><body><p>{text}</p></body></html>"


LEGACY = [
    (RUSSIAN, "windows-1251", "cp1251"),
    (RUSSIAN, "koi8-r", "koi8_r"),
    (JAPANESE, "shift_jis", "cp932"),
    (JAPANESE, "euc-jp", "euc_jp"),
    (JAPANESE, "iso-2022-jp", "iso2022_jp"),
    (CHINESE, "gb18030", "gb18030"),
    (KOREAN, "euc-kr", "cp949"),
    (FRENCH, "windows-1252", "cp1252"),
]


def same_codec(found: str, expected: str) -> bool:
    return found.replace("-", "_") == expected.replace("-", "_")


@pytest.mark.parametrize(("text", "label", "codec"), LEGACY, ids=[f"{b}" for _, b, _ in LEGACY])
@pytest.mark.parametrize("how", ["http", "content-type", "meta", "http-equiv", "nothing"])
def test_reads_every_encoding_however_it_is_named(text: str, label: str, codec: str, how: str) -> None:
    head = {
        "meta": f'<!-- <meta charset="utf-8"> --><meta charset="{label}">',
        "http-equiv": f"<META HTTP-EQUIV='Content-Type' CONTENT='text/html; charset={label.upper()}'>",
    }.get(how, "")
    charset = {"http": label.upper(), "content-type": f'text/html; charset="{label}"'}.get(how, "")
    html = page(text, head)
    found, used = decode(html.encode(codec), charset)
    assert text in found
    assert same_codec(used, codec)


def test_the_http_label_stands_before_the_pages_own() -> None:
    html = page(RUSSIAN, '<meta charset="koi8-r">').encode("windows-1251")
    assert decode(html, "windows-1251")[1] == "cp1251"


def test_wholly_valid_utf8_is_utf8_whatever_the_label_says() -> None:
    for label in ("iso-8859-1", "windows-1251", "shift_jis", "us-ascii", "utf-16", "nonsense"):
        assert decode(page(FRENCH).encode("utf-8"), label) == (page(FRENCH), "utf-8")


def test_utf8_label_on_latin1_bytes_is_not_believed() -> None:
    text, codec = decode(page(FRENCH).encode("windows-1252"), "utf-8")
    assert (FRENCH in text, codec) == (True, "cp1252")


def test_a_single_latin1_character_is_enough_to_disbelieve_utf8() -> None:
    assert "© 2004" in decode(b"<html lang=en><body>\xa9 2004 The Company</body>", "utf-8")[0]


def test_latin1_is_windows_1252_as_browsers_have_it() -> None:
    assert decode(b"<p>\x93quoted\x94 \x96 d\xe9j\xe0</p>", "iso-8859-1")[0] == "<p>“quoted” – déjà</p>"


def test_stray_bytes_in_a_utf8_page_cost_only_themselves() -> None:
    raw = page(CHINESE * 5).encode("utf-8").replace(b"</p>", b"\xff</p>")
    text, codec = decode(raw, "utf-8")
    assert codec == "utf-8"
    assert text.count("\ufffd") == 1
    assert CHINESE in text


@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("mark", [True, False], ids=["mark", "no mark"])
def test_utf16(codec: str, mark: bool) -> None:
    raw = ("\ufeff" if mark else "").encode(codec) + page(FRENCH).encode(codec)
    assert decode(raw, "iso-8859-1") == (page(FRENCH), codec)


def test_utf8_mark_is_removed() -> None:
    assert decode(b"\xef\xbb\xbf" + FRENCH.encode(), "windows-1251") == (FRENCH, "utf-8")


@pytest.mark.parametrize(("text", "label", "codec"), [*LEGACY, (CHINESE, "utf-8", "utf-8")])
@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_page_cut_within_a_character_keeps_its_encoding(text: str, label: str, codec: str, cut: int) -> None:
    raw = page(text, f'<meta charset="{label}">').partition("</p>")[0].encode(codec)[:-cut]
    found, used = decode(raw)
    assert same_codec(used, codec)
    assert text[:-4] in found


def test_declared_language_decides_between_encodings_a_detector_cannot_tell_apart() -> None:
    raw = page(CZECH, tag='<html lang="cs-CZ">').encode("windows-1250")
    assert CZECH in decode(raw)[0]


def test_labels_are_the_standards() -> None:
    assert CODECS["latin1"] == CODECS["ascii"] == "cp1252"
    assert CODECS["gb2312"] == CODECS["gbk"] == "gb18030"
    assert CODECS["ks_c_5601-1987"] == "cp949"
    assert "utf-7" not in CODECS
    for codec in set(CODECS.values()):
        assert "x".encode(codec).decode(codec) == "x"


def test_header_charset() -> None:
    assert header_charset("text/html; charset=UTF-8") == "utf-8"
    assert header_charset('text/html;Charset = "Shift_JIS"; x=y') == "shift_jis"
    assert header_charset("text/html") == ""


def test_controls_and_line_ends() -> None:
    assert clean_text("a\r\nb\rc\x0cd\x85e\u2028f\tg") == "a\nb\nc\nd\ne\nf\tg"
    assert clean_text("\x00\x01\x1b[31m\x7f\x9b\ufffe\uffff\ufdd0x") == "[31mx"
    assert clean_text("\ud83d \udc00") == "\ufffd \ufffd"
    assert clean_text("e\u0301 ﬁ ½") == "e\u0301 ﬁ ½"  # no normal form is forced


@given(st.binary(max_size=300), st.sampled_from(["", "utf-8", "utf-16", "shift_jis", "x-unknown", "windows-1252"]))
def test_any_bytes_give_clean_text_and_the_same_each_time(raw: bytes, label: str) -> None:
    text, codec = decode(raw, label)
    assert (text, codec) == decode(raw, label)
    assert clean_text(text) == text
    text.encode("utf-8")
    assert not any(ord(c) < 32 and c not in "\t\n" for c in text)


@given(st.text())
def test_cleaning_twice_is_cleaning_once(text: str) -> None:
    assert clean_text(clean_text(text)) == clean_text(text)
