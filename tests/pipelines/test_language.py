"""Language: the answers of the library it takes its model from, for any order, and evidence that fits its part."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import language
from pipelines.documents import SCHEMA as DOCUMENTS
from pipelines.documents import STAGE as DOCUMENTS_STAGE
from pipelines.language import LanguageOptions, excerpt, find_languages
from pipelines.stages import Context, Task
from pipelines.workspace import PartFile, Workspace, part_metadata, read_part

SAMPLES = {
    "en": "The quick brown fox jumps over the lazy dog, and the people who saw it were rather surprised.",
    "de": "Der schnelle braune Fuchs springt über den faulen Hund, und die Leute waren sehr überrascht.",
    "fr": "Le renard brun et rapide saute par-dessus le chien paresseux, ce qui surprit tout le monde.",
    "ru": "Быстрая коричневая лиса прыгает через ленивую собаку, и все очень удивились этому.",
    "ja": "すばやい茶色の狐がのろまな犬を飛び越えたので、みんなとても驚きました。",
    "zh": "敏捷的棕色狐狸跳过了懒狗，看到的人都非常惊讶。",
    "ar": "الثعلب البني السريع يقفز فوق الكلب الكسول، وقد تفاجأ الناس كثيرا.",
}


def test_languages() -> None:
    found, confidence = find_languages(list(SAMPLES.values()), LanguageOptions())
    assert found == list(SAMPLES)
    assert confidence.dtype == np.float32
    assert (confidence > 0.5).all()
    assert (confidence <= 1).all()


def test_a_text_the_model_knows_nothing_of_has_no_language() -> None:
    found, confidence = find_languages(["", " \n", "1234", "..."], LanguageOptions())
    assert found == [""] * 4
    assert not confidence.any()
    assert find_languages([], LanguageOptions())[0] == []


def test_the_librarys_own_answers(shared: Path) -> None:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    peer = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    lines = gzip.decompress((shared / "data" / "c4-sample" / "c4.jsonl.gz").read_bytes()).splitlines()[:300]
    texts = [
        *(json.loads(line)["text"] for line in lines),
        *SAMPLES.values(),
        "ALL IN CAPITAL LETTERS HERE",
        "e\u0301t\u0301",
    ]
    options = LanguageOptions()
    found, confidence = find_languages(texts, options)
    for text, name, sure in zip(texts, found, confidence.tolist(), strict=True):
        peers_name, peers_sure = peer.classify(excerpt(text, options.max_chars))
        assert name == peers_name, text[:80]
        assert sure == pytest.approx(peers_sure, abs=0.002)


@settings(max_examples=25, deadline=None)
@given(st.permutations([*SAMPLES.values(), "", "x", SAMPLES["en"] * 40]))
def test_a_texts_answer_does_not_depend_on_its_neighbours(texts: list[str]) -> None:
    found, confidence = find_languages(texts, LanguageOptions())
    for text, name, sure in zip(texts, found, confidence, strict=True):
        alone, certainty = find_languages([text], LanguageOptions())
        assert (name, sure) == (alone[0], certainty[0])


def test_long_texts_are_looked_at_in_two_places() -> None:
    menu = "Home About Contact Login "
    text = menu * 20 + SAMPLES["fr"] * 200
    assert len(excerpt(text, 2000)) == 2001
    assert excerpt("short", 2000) == "short"
    assert find_languages([text], LanguageOptions(max_chars=1000))[0] == ["fr"]


def test_evidence_fits_its_part(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path, create=True)
    texts = [*SAMPLES.values(), ""]
    rows = [
        {"doc_id": f"{i:032x}", "url": f"http://e.org/{i}", "title": "", "date": "", "language": "", "text": text}
        for i, text in enumerate(texts)
    ]
    documents = Context(workspace, DOCUMENTS_STAGE, None)
    documents.write("", "p-00000000-0000", pa.Table.from_pylist(rows, schema=DOCUMENTS), DOCUMENTS)
    (file,) = documents.record()["tables"][""]
    context = Context(workspace, language.STAGE, LanguageOptions())
    language.annotate(Task("p", {"documents": file}), context)
    record = context.record()
    (written,) = (PartFile.of(f) for f in record["tables"][""])
    table = read_part(workspace, written)
    assert table.schema.remove_metadata() == language.SCHEMA
    assert table["language"].to_pylist() == [*SAMPLES, ""]
    assert part_metadata(workspace, written)["documents.sha256"] == file["sha256"]
    assert record["ledgers"] == {"documents": {"in": len(texts), "kept": len(texts)}}


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="max_chars"):
        LanguageOptions(max_chars=3)
