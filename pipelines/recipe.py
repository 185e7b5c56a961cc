"""A recipe: which inputs, which options, which rules. Read, checked whole, and refused at once where it is wrong.

Every stage's options are the dataclass of that stage; this file only names the sections. Paths are relative to the
recipe's own folder, so a recipe can travel with its data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.contamination import ContaminationOptions
from pipelines.corpus import CorpusOptions
from pipelines.documents import DocumentOptions
from pipelines.duplicates import DuplicateOptions
from pipelines.evaluation_sets import EvaluationSet, set_files
from pipelines.fetch import FetchOptions
from pipelines.inputs import InputFile, find_inputs
from pipelines.language import LanguageOptions
from pipelines.links import LinkOptions
from pipelines.options import RecipeError, build_options
from pipelines.shards import ShardOptions
from pipelines.texts import TextOptions
from pipelines.tokens import TokenizerOptions
from pipelines.wikipedia import WikipediaOptions

MAX_RECIPE_BYTES = 1 << 20


@dataclass(frozen=True)
class Inputs:
    """Files, folders or patterns, relative to the recipe: link dumps, web archives, own texts, Wikipedia dumps."""

    links: tuple[str, ...] = ()
    archives: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    wikipedia: tuple[str, ...] = ()


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a build makes."""

    name: str = "corpus"
    inputs: Inputs = field(default_factory=Inputs)
    links: LinkOptions = field(default_factory=LinkOptions)
    fetch: FetchOptions | None = None
    documents: DocumentOptions = field(default_factory=DocumentOptions)
    texts: TextOptions = field(default_factory=TextOptions)
    language: LanguageOptions = field(default_factory=LanguageOptions)
    duplicates: DuplicateOptions = field(default_factory=DuplicateOptions)
    wikipedia: WikipediaOptions = field(default_factory=WikipediaOptions)
    contamination: ContaminationOptions = field(default_factory=ContaminationOptions)
    evaluation: tuple[EvaluationSet, ...] = ()
    corpus: CorpusOptions = field(default_factory=CorpusOptions)
    tokenizer: TokenizerOptions = field(default_factory=TokenizerOptions)
    shards: ShardOptions = field(default_factory=ShardOptions)
    on_broken_input: str = "count"

    def __post_init__(self) -> None:
        if self.on_broken_input not in ("count", "fail"):
            raise ValueError(f"on_broken_input must be count or fail, not {self.on_broken_input!r}")
        if not (self.inputs.links and self.fetch) and not self.inputs.archives and not self.inputs.texts:
            raise ValueError(
                "inputs gives no text: name inputs.archives or inputs.texts, or inputs.links with a fetch section"
            )
        if self.fetch and not self.inputs.links:
            raise ValueError("fetch needs inputs.links to name link dumps")
        if self.corpus.duplicates.similarity < self.duplicates.floor:
            raise ValueError(
                f"corpus.duplicates.similarity ({self.corpus.duplicates.similarity}) is below duplicates.floor "
                f"({self.duplicates.floor}), under which no pair is kept as evidence: lower the floor too"
            )
        if "linked" in self.corpus.rules and not self.inputs.links:
            raise ValueError("corpus.rules holds linked, and inputs.links is empty: name link dumps or leave it out")
        if "contamination" in self.corpus.rules and not self.evaluation:
            raise ValueError(
                "corpus.rules holds contamination, and evaluation names no set: name one or leave it out"
            )


@dataclass(frozen=True)
class ResolvedInputs:
    """The files behind a recipe's patterns."""

    links: tuple[InputFile, ...]
    archives: tuple[InputFile, ...]
    texts: tuple[InputFile, ...]
    wikipedia: tuple[InputFile, ...]
    evaluation: tuple[InputFile, ...]

    def all(self) -> tuple[InputFile, ...]:
        return (*self.links, *self.archives, *self.texts, *self.wikipedia, *self.evaluation)


def _strict_loader() -> Any:
    """YAML's safe loader, which also refuses a key given twice instead of taking the last."""
    import yaml

    class Strict(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            twice = next((key for i, key in enumerate(keys) if key in keys[:i]), None)
            if twice is not None:
                raise yaml.YAMLError(f"{twice!r} is given twice, at {node.start_mark}")
            return super().construct_mapping(node, deep)

    return Strict


def parse_recipe(text: str, where: str) -> Recipe:
    """A recipe from YAML text. Raises RecipeError with the path in the recipe."""
    import yaml

    if len(text) > MAX_RECIPE_BYTES:
        raise RecipeError(
            f"{where} is larger than {MAX_RECIPE_BYTES:,} bytes; a recipe names inputs, it does not hold them"
        )
    try:
        body = yaml.load(text, _strict_loader())  # a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date such as 2017-13-01
        raise RecipeError(f"{where} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(body, Mapping):
        raise RecipeError(f"{where} must be a mapping of sections; `webtext new` writes one to start from")
    corpus = body.get("corpus") or {}
    if isinstance(corpus, Mapping) and "rules" not in corpus:
        body = {**body, "corpus": {**corpus, "rules": list(default_rules(body))}}
    try:
        return build_options(Recipe, body, "recipe")
    except RecipeError as error:
        raise RecipeError(f"{where}: {str(error).removeprefix('recipe: ').removeprefix('recipe.')}") from error


def default_rules(body: Mapping[str, Any]) -> tuple[str, ...]:
    """The rules a recipe without `corpus.rules` gets: all whose evidence its inputs can give."""
    inputs = body.get("inputs") or {}
    rules = ["language", "quality", "wikipedia", "duplicates"]
    if isinstance(inputs, Mapping) and inputs.get("links"):
        rules.insert(0, "linked")
    if body.get("evaluation"):
        rules.append("contamination")
    return tuple(rules)


def read_recipe(path: Path) -> tuple[Recipe, ResolvedInputs]:
    """A recipe file and the inputs it names. Raises RecipeError for anything wrong or missing."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read the recipe {path}: {error}") from error
    recipe = parse_recipe(text, str(path))
    try:
        return recipe, resolve_inputs(recipe, path.absolute().parent)
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from error


def resolve_inputs(recipe: Recipe, base: Path) -> ResolvedInputs:
    """The files behind a recipe's patterns. Raises RecipeError naming the first that is missing."""
    given = recipe.inputs
    resolved = ResolvedInputs(
        links=tuple(find_inputs(given.links, base, "inputs.links")),
        archives=tuple(find_inputs(given.archives, base, "inputs.archives")),
        texts=tuple(find_inputs(given.texts, base, "inputs.texts")),
        wikipedia=tuple(find_inputs(given.wikipedia, base, "inputs.wikipedia")),
        evaluation=tuple(set_files(recipe.evaluation, base, "evaluation")),
    )
    names = {file.name: file.path for file in resolved.archives}
    for file in resolved.texts:
        if file.name in names:
            raise RecipeError(
                f"inputs.texts and inputs.archives both have a file named {file.name} ({file.path} and "
                f"{names[file.name]}); name a common folder above one of them, such as texts/**"
            )
    return resolved


TEMPLATE = """\
# A recipe for `webtext build`. Paths are relative to this file; patterns such as dumps/RS_*.zst work.
# Every option not named here has a default; `webtext options` lists them all.
name: my-corpus

inputs:
  links: [dumps/RS_*.zst]        # Reddit submissions: JSON lines or CSV; .zst .xz .bz2 .gz or plain
  archives: [archives/*.warc.gz] # WARC or ARC; leave out to fetch the links instead (see fetch below)
  # texts: [texts/*.jsonl]       # your own text: JSON lines, Parquet, plain text or WET
  # wikipedia: [enwiki-pages-articles.xml.bz2]   # finds mirrors by their text, not only by their domain

links:
  min_score: 3                   # GPT-2: links with at least 3 karma
  # created_before: 2018-01-01   # GPT-2: no links after December 2017

# fetch:                         # fetch the kept links politely into WARC files
#   contact: you@example.org     # goes into the User-Agent, so that site owners can reach you

# evaluation:                    # sets to find in the corpus, for the contamination report
#   - {name: lambada, path: evaluation/lambada_test.jsonl, format: jsonl}

corpus:
  # The first rule that fails names the reason. Leave `linked` out to keep pages nobody linked to.
  rules: [linked, language, quality, wikipedia, duplicates]
  language: {keep: [en]}
  duplicates: {similarity: 0.8}  # Jaccard similarity of word 5-grams, verified

tokenizer:
  bpe: {vocab_size: 50257}

shards:
  validation: 0.01
"""


def recipe_yaml(recipe: Recipe) -> str:
    """A recipe with every option spelled out, as YAML that parses to the same recipe."""
    import yaml

    from pipelines.stages import plain_options

    return str(yaml.safe_dump(plain_options(recipe), sort_keys=False, allow_unicode=True))
