"""Bytes of a page to text: which character encoding, and why.

The order is the WHATWG Encoding and HTML standards' (https://encoding.spec.whatwg.org, "encoding sniffing" in HTML
§13.2.3) with what large crawls teach on top: byte-order mark, charset of the HTTP header, `<meta>` prescan, UTF-8,
the usual encoding of the declared language, and a detector last. A label is believed only as far as the bytes
agree with it:

* bytes that are wholly valid UTF-8 are UTF-8, whatever a label says: text in another encoding is almost never valid
  UTF-8 by chance, and stale server defaults are common; UTF-16 needs its mark or its NULs, ISO-2022-JP its escapes;
* a label that would turn more than `BAD_SHARE` of the non-ASCII bytes into U+FFFD is passed over for the next step;
* broken sequences that remain (a page cut in the middle of a character) become U+FFFD.

The text that comes out holds no NUL, no control character but tab and newline, and no lone surrogate (`clean_text`).
Its Unicode normal form is left as it is: GPT-2's text was not normalised.
"""

from __future__ import annotations

import codecs
import re

PRESCAN = 4096
"""Bytes searched for a `<meta>` declaration. The standard says 1024; real pages put scripts before it."""

SAMPLE = 16384
"""Bytes given to the detector, from the first non-ASCII byte of the page's text on."""

BAD_SHARE = 0.02
"""Share of non-ASCII bytes a believed label may turn into U+FFFD."""

# Labels by Python codec, from the standard's table; the codec is the superset the standard decodes with
# (windows-1252 for latin-1 and ASCII, cp932 for Shift_JIS, gb18030 for GB2312 and GBK, cp949 for EUC-KR).
_LABELS = {
    "utf-8": "utf-8 utf8 unicode-1-1-utf-8 unicode11utf8 unicode20utf8 x-unicode20utf8",
    "utf-16-le": "utf-16 utf-16le utf16 ucs-2 unicode unicodefeff csunicode iso-10646-ucs-2",
    "utf-16-be": "utf-16be unicodefffe",
    "cp866": "866 cp866 csibm866 ibm866",
    "iso8859-2": "csisolatin2 iso-8859-2 iso-ir-101 iso8859-2 iso88592 iso_8859-2 iso_8859-2:1987 l2 latin2",
    "iso8859-3": "csisolatin3 iso-8859-3 iso-ir-109 iso8859-3 iso88593 iso_8859-3 iso_8859-3:1988 l3 latin3",
    "iso8859-4": "csisolatin4 iso-8859-4 iso-ir-110 iso8859-4 iso88594 iso_8859-4 iso_8859-4:1988 l4 latin4",
    "iso8859-5": "csisolatincyrillic cyrillic iso-8859-5 iso-ir-144 iso8859-5 iso88595 iso_8859-5 iso_8859-5:1988",
    "iso8859-6": "arabic asmo-708 csiso88596e csiso88596i csisolatinarabic ecma-114 iso-8859-6 iso-8859-6-e "
    "iso-8859-6-i iso-ir-127 iso8859-6 iso88596 iso_8859-6 iso_8859-6:1987",
    "iso8859-7": "csisolatingreek ecma-118 elot_928 greek greek8 iso-8859-7 iso-ir-126 iso8859-7 iso88597 iso_8859-7 "
    "iso_8859-7:1987 sun_eu_greek",
    "iso8859-8": "csiso88598e csisolatinhebrew hebrew iso-8859-8 iso-8859-8-e iso-ir-138 iso8859-8 iso88598 "
    "iso_8859-8 iso_8859-8:1988 visual csiso88598i iso-8859-8-i logical",
    "iso8859-10": "csisolatin6 iso-8859-10 iso-ir-157 iso8859-10 iso885910 l6 latin6",
    "iso8859-13": "iso-8859-13 iso8859-13 iso885913",
    "iso8859-14": "iso-8859-14 iso8859-14 iso885914",
    "iso8859-15": "csisolatin9 iso-8859-15 iso8859-15 iso885915 iso_8859-15 l9 latin-9",
    "iso8859-16": "iso-8859-16",
    "koi8-r": "cskoi8r koi koi8 koi8-r koi8_r",
    "koi8-u": "koi8-ru koi8-u",
    "mac-roman": "csmacintosh mac macintosh x-mac-roman",
    "mac-cyrillic": "x-mac-cyrillic x-mac-ukrainian",
    "cp874": "dos-874 iso-8859-11 iso8859-11 iso885911 tis-620 windows-874",
    "cp1250": "cp1250 windows-1250 x-cp1250",
    "cp1251": "cp1251 windows-1251 x-cp1251 win-1251 windows1251",
    "cp1252": "ansi_x3.4-1968 ascii cp1252 cp819 csisolatin1 ibm819 iso-8859-1 iso-ir-100 iso8859-1 iso88591 "
    "iso_8859-1 iso_8859-1:1987 l1 latin1 latin-1 us-ascii windows-1252 x-cp1252 x-user-defined",
    "cp1253": "cp1253 windows-1253 x-cp1253",
    "cp1254": "cp1254 csisolatin5 iso-8859-9 iso-ir-148 iso8859-9 iso88599 iso_8859-9 iso_8859-9:1989 l5 latin5 "
    "windows-1254 x-cp1254",
    "cp1255": "cp1255 windows-1255 x-cp1255",
    "cp1256": "cp1256 windows-1256 x-cp1256",
    "cp1257": "cp1257 windows-1257 x-cp1257",
    "cp1258": "cp1258 windows-1258 x-cp1258",
    "gb18030": "gb18030 chinese csgb2312 csiso58gb231280 gb2312 gb_2312 gb_2312-80 gbk iso-ir-58 x-gbk",
    "big5hkscs": "big5 big5-hkscs cn-big5 csbig5 x-x-big5",
    "euc_jp": "cseucpkdfmtjapanese euc-jp x-euc-jp",
    "iso2022_jp": "csiso2022jp iso-2022-jp",
    "cp932": "csshiftjis ms932 ms_kanji shift-jis shift_jis sjis windows-31j x-sjis",
    "cp949": "cseuckr csksc56011987 euc-kr iso-ir-149 korean ks_c_5601-1987 ks_c_5601-1989 ksc5601 "
    "ksc_5601 windows-949",
}
CODECS = {label: codec for codec, labels in _LABELS.items() for label in labels.split()}
"""Python codec by lower-case label. Labels the standard calls unsafe (iso-2022-kr, hz, utf-7) are not in it."""

_BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
# The fallback by declared language, after HTML §13.2.3.2 step 9.
_LANGUAGES = {
    "cp1256": "ar fa ur",
    "cp1251": "ba be bg kk ky mk ru sr tg tt uk",
    "cp1250": "bs cs hr hu pl ro sk sl sq",
    "cp1257": "et lt lv",
    "cp1254": "az ku tr",
    "cp1252": "da de en es fi fr is it nl no pt sv",
    "cp1253": "el",
    "cp1255": "he",
    "cp932": "ja",
    "cp949": "ko",
    "cp874": "th",
    "cp1258": "vi",
    "gb18030": "zh",
    "big5hkscs": "zh-tw zh-hk zh-hant",
}
_BY_LANGUAGE = {language: codec for codec, languages in _LANGUAGES.items() for language in languages.split()}

_DETECTABLE = (
    *("cp932", "euc_jp", "cp949", "gb18030", "big5hkscs"),
    *("cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "koi8_r", "koi8_u"),
    *("cp866", "cp874", "iso8859_2", "iso8859_5", "iso8859_7"),
)
"""The detector's candidates; of two that fit equally well the earlier one is taken."""

_COMMENT = re.compile(rb"<!--.*?-->", re.DOTALL)
_META = re.compile(rb"<meta[\s/][^>]{0,1024}>", re.IGNORECASE)
_META_CHARSET = re.compile(rb"charset\s*=\s*[\"']?\s*([A-Za-z0-9_.:\-]{2,40})", re.IGNORECASE)
_XML_ENCODING = re.compile(rb"^\s*<\?xml\s[^>]{0,200}?encoding\s*=\s*[\"']([A-Za-z0-9_.:\-]{2,40})", re.IGNORECASE)
_HTML_LANGUAGE = re.compile(
    rb"<html\b[^>]{0,1024}?\blang\s*=\s*[\"']?\s*([A-Za-z]{2,3}(?:-[A-Za-z]{2,4})?)", re.IGNORECASE
)
_HEADER_CHARSET = re.compile(r"charset\s*=\s*[\"']?\s*([A-Za-z0-9_.:\-]{2,40})", re.IGNORECASE)
_TAG = re.compile(rb"<[^<>]{0,4096}>")

_CONTROLS = "\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ufdd0-\ufdef\ufffe\uffff"
_BREAKS = "\x0b\x0c\x85\u2028\u2029"
_SURROGATES = "\ud800-\udfff"
_UNCLEAN = re.compile(f"[{_CONTROLS}{_BREAKS}{_SURROGATES}]")
_REMOVED, _NEWLINE, _REPLACED = (re.compile(f"[{kind}]+") for kind in (_CONTROLS, _BREAKS, _SURROGATES))


def decode(payload: bytes, charset: str = "") -> tuple[str, str]:
    """Text of a page's bytes, cleaned, and the Python codec it was read with.

    `charset` is the HTTP header's charset (or a whole Content-Type value); "" when there was none. Never raises:
    bytes that no step can read are UTF-8 with U+FFFD in the broken places, reported as "utf-8".
    """
    text, codec = _decode(payload, charset)
    return clean_text(text), codec


def clean_text(text: str) -> str:
    """Text without control characters (tab and newline stay), noncharacters of the BMP or lone surrogates.

    Every line end (CRLF, CR, vertical tab, form feed, NEL, U+2028, U+2029) becomes a newline. Idempotent.

    >>> clean_text("a\\r\\nb\\x00\\x1bc")
    'a\\nbc'
    """
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if not _UNCLEAN.search(text):
        return text
    return _REPLACED.sub("\ufffd", _NEWLINE.sub("\n", _REMOVED.sub("", text)))


def header_charset(content_type: str) -> str:
    """The charset label of an HTTP Content-Type value (RFC 9110 §8.3), lower-case; "" without one."""
    match = _HEADER_CHARSET.search(content_type)
    return match.group(1).lower() if match else ""


def _decode(payload: bytes, charset: str) -> tuple[str, str]:
    for mark, codec in _BOMS:
        if payload.startswith(mark):
            return payload[len(mark) :].decode(codec, "replace"), codec
    wide = _wide(payload)
    if wide:
        return payload.decode(wide, "replace"), wide
    try:
        return payload.decode("utf-8"), "utf-8"
    except UnicodeDecodeError:
        pass
    labels = (_http_codec(charset), _meta_codec(payload), "utf-8", _language_codec(payload))
    for codec in dict.fromkeys(c for c in labels if c and not c.startswith("utf-16")):
        text = _attempt(payload, codec)
        if text is not None:
            return text, codec
    codec = _detect(payload)
    return payload.decode(codec, "replace"), codec


def _http_codec(charset: str) -> str:
    return CODECS.get(header_charset(charset) or charset.strip().lower(), "")


def _meta_codec(payload: bytes) -> str:
    """The codec that the first `<meta>` with a charset, or else the XML declaration, names near the start."""
    head = _COMMENT.sub(b"", payload[:PRESCAN])
    found = next((m for m in map(_META_CHARSET.search, _META.findall(head)) if m), None) or _XML_ENCODING.search(head)
    return CODECS.get(found.group(1).decode("ascii").lower(), "") if found else ""


def _language_codec(payload: bytes) -> str:
    found = _HTML_LANGUAGE.search(payload[:PRESCAN])
    language = found.group(1).decode("ascii").lower() if found else ""
    return _BY_LANGUAGE.get(language) or _BY_LANGUAGE.get(language[:2], "")


def _wide(payload: bytes) -> str:
    """Codecs that give themselves away: ISO-2022-JP by its escapes, UTF-16 by a NUL in every other byte of HTML.

    A label alone never makes a page UTF-16: nearly any bytes would decode.
    """
    if b"\x1b$B" in payload or b"\x1b$@" in payload:
        return "iso2022_jp"
    head = payload[:PRESCAN]
    half = max(1, len(head) // 2)
    if head[1::2].count(0) > 0.6 * half:
        return "utf-16-le"
    return "utf-16-be" if head[0::2].count(0) > 0.6 * half else ""


def _attempt(payload: bytes, codec: str) -> str | None:
    """The text under a codec, or None when too much of it is broken for the codec to be right."""
    try:
        return payload.decode(codec)
    except UnicodeDecodeError:
        text = payload.decode(codec, "replace")
    bad = text.count("\ufffd") - text.endswith("\ufffd")  # a page cut in the middle of a character is not broken
    beyond_ascii = len(payload) - len(payload.translate(None, bytes(range(128, 256))))
    return text if bad <= BAD_SHARE * beyond_ascii else None


def _detect(payload: bytes) -> str:
    """The detector's codec for the page's words (markup says nothing about them); "utf-8" when it has no answer."""
    import charset_normalizer

    words = re.sub(rb"\s+", b" ", _TAG.sub(b" ", payload[: 16 * SAMPLE]))
    first = next((m.start() for m in re.finditer(rb"[\x80-\xff]", words)), 0)
    sample = words[max(0, first - 64) :][:SAMPLE]
    found = charset_normalizer.from_bytes(sample, cp_isolation=list(_DETECTABLE), preemptive_behaviour=False)
    best = found.best()
    if best is None:
        return "utf-8"
    equals = [m for m in found if (m.chaos, m.coherence) == (best.chaos, best.coherence)]
    return min((name for m in equals for name in m.could_be_from_charset), key=_DETECTABLE.index)
