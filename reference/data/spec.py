"""The TOML file that says what a corpus is made of; every problem in it is reported at once.

Paths are relative to the spec's folder. What is left out has the default below; a section that is
left out is switched off only where its defaults say so.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import tomllib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from reference.errors import TrainerError


@dataclass(frozen=True)
class Source:
    """Where documents come from: files (`path`) or anything `datasets` loads (`dataset`)."""

    name: str
    path: str = ""  # a file, a folder or a pattern: parquet, jsonl, jsonl.gz, jsonl.zst, txt
    dataset: str = ""  # first argument of datasets.load_dataset; read as a stream
    config: str = ""
    split: str = "train"
    revision: str = ""
    data_files: tuple[str, ...] = ()
    text: str = "text"  # column or key of the text
    domain: str = ""  # label of all documents; the source's name when empty
    domain_column: str = ""  # or the column that holds it
    exclude: tuple[str, ...] = ()  # file names (patterns) left out
    filters: bool = True  # rules for prose make no sense on code


@dataclass(frozen=True)
class Normalize:
    enabled: bool = True
    max_document_mb: float = 8.0  # longer documents are removed, and counted


@dataclass(frozen=True)
class Language:
    keep: tuple[str, ...] = ()  # ISO 639-1 codes; empty: all
    min_probability: float = 0.5


@dataclass(frozen=True)
class Filters:
    """The published rules, from datatrove. Options are those of its classes."""

    gopher_quality: bool = True
    gopher_repetition: bool = True
    c4: bool = False
    fineweb: bool = True
    gopher_quality_options: dict[str, Any] = field(default_factory=dict)
    gopher_repetition_options: dict[str, Any] = field(default_factory=dict)
    c4_options: dict[str, Any] = field(default_factory=dict)
    fineweb_options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Quality:
    """A linear model learnt from two sets of example files; off without them."""

    clean: tuple[str, ...] = ()
    noisy: tuple[str, ...] = ()
    text: str = "text"
    examples: int = 5000  # of each kind at most
    min_score: float = 0.0  # 0..1; documents below are removed


@dataclass(frozen=True)
class Domains:
    """Labels learnt from example files by name; without them a source's own label counts."""

    examples: dict[str, str] = field(default_factory=dict)
    text: str = "text"
    per_domain: int = 2000


@dataclass(frozen=True)
class Dedup:
    exact: bool = True
    near: bool = True
    jaccard: float = 0.8  # of word n-grams
    ngram: int = 5
    keep: Literal["best", "first"] = "best"  # by quality score, then by order of reading


@dataclass(frozen=True)
class Decontaminate:
    """Removes documents that share runs of words with evaluation sets; off without a folder."""

    core: str = ""  # a CORE bundle
    chat_eval: str = ""  # a folder of jsonl files
    extra: tuple[str, ...] = ()  # more jsonl files
    ngram: int = 13
    min_matches: int = 1
    common: int = 10  # n-grams of more items than this are task wording and do not count


@dataclass(frozen=True)
class Mix:
    shares: dict[str, float] = field(default_factory=dict)  # domain -> share of the text bytes
    max_epochs: float = 1.0  # how often one document may stand in the corpus
    max_mb: float = 0.0  # text of the corpus at most; 0: all there is


@dataclass(frozen=True)
class Anneal:
    """A part for the end of training, apart from the rest: the best by score, by domain."""

    fraction: float = 0.0  # of the text bytes
    shares: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ShardRules:
    text_mb: float = 100.0
    validation: float = 0.005  # share of documents held out


@dataclass(frozen=True)
class Spec:
    source: tuple[Source, ...]
    name: str = "corpus"
    seed: int = 0
    on_error: Literal["stop", "skip"] = "stop"  # an unreadable file or document
    part_mb: float = 64.0  # of input a task; decides how work is cut, so part of the spec
    normalize: Normalize = field(default_factory=Normalize)
    language: Language = field(default_factory=Language)
    filters: Filters = field(default_factory=Filters)
    quality: Quality = field(default_factory=Quality)
    domains: Domains = field(default_factory=Domains)
    dedup: Dedup = field(default_factory=Dedup)
    decontaminate: Decontaminate = field(default_factory=Decontaminate)
    mix: Mix = field(default_factory=Mix)
    anneal: Anneal = field(default_factory=Anneal)
    shards: ShardRules = field(default_factory=ShardRules)

    def to_json(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return document

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Spec:
        problems: list[str] = []
        spec = _parse(cls, document, "", problems)
        if problems:
            raise _refuse("the spec", problems)
        return typing.cast(Spec, spec)

    @property
    def digest(self) -> str:
        """ "sha256:…" of the resolved spec."""
        data = json.dumps(self.to_json(), sort_keys=True).encode()
        return f"sha256:{hashlib.sha256(data).hexdigest()}"


def load_spec(path: Path) -> Spec:
    """The spec in `path`; a folder instead of a file stands for one source with all defaults.

    Raises:
        TrainerError: It cannot be read, or has problems; all of them are named.
    """
    if path.is_dir():
        source = Source(name=path.resolve().name, path=str(path.resolve()))
        return Spec(source=(source,), name=path.resolve().name)
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise TrainerError("bad_input", f"no spec at {path}", "Name a TOML file.") from error
    except (ValueError, RecursionError) as error:  # UTF-8, TOML, a number too long, too deep
        raise TrainerError("bad_input", f"{path} is no TOML: {error}", "Mend the line.") from error
    problems: list[str] = []
    spec = _parse(Spec, document, "", problems)
    if not problems:
        problems += list(_contradictions(spec))
    if problems:
        raise _refuse(str(path), problems)
    return _absolute(spec, path.parent.resolve())


def _refuse(where: str, problems: list[str]) -> TrainerError:
    many = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
    return TrainerError(
        "bad_input",
        f"{where} has {many}:\n" + "\n".join(f"  {line}" for line in problems),
        "`n4090-kit data spec` prints every field with its default.",
    )


def _parse(kind: type, table: Any, where: str, problems: list[str]) -> Any:
    if not isinstance(table, dict):
        problems.append(f"{where or 'the spec'}: found {table!r}; allowed: a table")
        return None
    hints = get_type_hints(kind)
    fields = {item.name: item for item in dataclasses.fields(kind)}
    values = {}
    for name, value in table.items():
        if name not in fields:
            close = difflib.get_close_matches(name, fields, n=1)
            also = f"; did you mean `{close[0]}`?" if close else ""
            problems.append(f"{where}{name}: no such field{also}")
        else:
            values[name] = _value(hints[name], value, f"{where}{name}", problems)
    for name, item in fields.items():
        required = (
            item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        )
        if required and name not in values:
            problems.append(f"{where}{name}: missing")
            return None
    return kind(**values)


def _value(hint: Any, value: Any, where: str, problems: list[str]) -> Any:
    origin = get_origin(hint)
    if dataclasses.is_dataclass(hint):
        return _parse(typing.cast(type, hint), value, f"{where}.", problems)
    if origin is tuple:
        inner = get_args(hint)[0]
        values = [value] if isinstance(value, str) and inner is str else value
        if not isinstance(values, list):
            problems.append(f"{where}: found {value!r}; allowed: a list")
            return ()
        return tuple(
            _value(inner, item, f"{where}[{index}]", problems) for index, item in enumerate(values)
        )
    if origin is dict:
        if not isinstance(value, dict):
            problems.append(f"{where}: found {value!r}; allowed: a table")
            return {}
        inner = get_args(hint)[1]
        return {key: _value(inner, item, f"{where}.{key}", problems) for key, item in value.items()}
    if origin is Literal:
        if value not in get_args(hint):
            allowed = ", ".join(map(repr, get_args(hint)))
            problems.append(f"{where}: found {value!r}; allowed: {allowed}")
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if hint is Any or isinstance(hint, types.UnionType):
        return value
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        problems.append(f"{where}: found {value!r}; allowed: {hint.__name__}")
    elif hint in (int, float) and not 0 <= value < 2**53:
        problems.append(f"{where}: found {value!r}; allowed: a number from 0")
    return value


def _contradictions(spec: Spec) -> typing.Iterator[str]:
    if not spec.source:
        yield "source: at least one [[source]] is needed"
    names = [source.name for source in spec.source]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"source: two are named {name!r}"
    for index, source in enumerate(spec.source):
        if bool(source.path) == bool(source.dataset):
            yield f"source[{index}]: needs either `path` or `dataset`"
    if bool(spec.quality.clean) != bool(spec.quality.noisy):
        yield "quality: needs both `clean` and `noisy`"
    if spec.quality.min_score and not spec.quality.clean:
        yield "quality.min_score: needs `clean` and `noisy` examples"
    for where, share in (
        ("dedup.jaccard", spec.dedup.jaccard),
        ("anneal.fraction", spec.anneal.fraction),
        ("shards.validation", spec.shards.validation),
        ("quality.min_score", spec.quality.min_score),
        ("language.min_probability", spec.language.min_probability),
    ):
        if share > 1:
            yield f"{where}: found {share}; allowed: 0 to 1"
    if not spec.dedup.ngram or not spec.decontaminate.ngram:
        yield "dedup.ngram, decontaminate.ngram: at least 1"
    if not spec.part_mb or not spec.shards.text_mb or not spec.normalize.max_document_mb:
        yield "part_mb, shards.text_mb, normalize.max_document_mb: more than 0"
    for where, shares in (("mix", spec.mix.shares), ("anneal", spec.anneal.shares)):
        if shares and not sum(shares.values()) > 0:
            yield f"{where}.shares: they add up to nothing"


def _absolute(spec: Spec, folder: Path) -> Spec:
    """The same with paths that do not depend on where it is used."""

    def place(text: str) -> str:
        return str(folder / Path(text).expanduser()) if text else ""

    replace = dataclasses.replace
    sources = tuple(replace(source, path=place(source.path)) for source in spec.source)
    quality, rules = spec.quality, spec.decontaminate
    return replace(
        spec,
        source=sources,
        quality=replace(
            quality,
            clean=tuple(map(place, quality.clean)),
            noisy=tuple(map(place, quality.noisy)),
        ),
        domains=replace(
            spec.domains,
            examples={name: place(path) for name, path in spec.domains.examples.items()},
        ),
        decontaminate=replace(
            rules,
            core=place(rules.core),
            chat_eval=place(rules.chat_eval),
            extra=tuple(map(place, rules.extra)),
        ),
    )


def identity(spec: Spec) -> dict[str, Any]:
    """The spec without what names places: the same corpus from another folder is the same."""
    document = spec.to_json()
    for source in document["source"]:
        source["path"] = Path(source["path"]).name
    for section, names in (
        ("quality", ("clean", "noisy")),
        ("decontaminate", ("core", "chat_eval", "extra")),
    ):
        for name in names:
            value = document[section][name]
            document[section][name] = (
                Path(value).name if isinstance(value, str) else [Path(item).name for item in value]
            )
    examples = document["domains"]["examples"]
    document["domains"]["examples"] = {name: Path(path).name for name, path in examples.items()}
    return document
