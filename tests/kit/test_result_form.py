"""result.json as dataclasses: results of every kit so far are read and written without loss."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from support.dataclass_schema import result_schema

from kit.errors import SchemaError
from kit.result_form import Result
from kit.schemas import load_schema, problems
from kit.verify import verify_result

RESULTS = sorted((Path(__file__).parents[2] / "submissions").rglob("result.json"))


def read(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_bytes())
    return document


def test_the_shipped_schema_is_made_from_the_classes() -> None:
    assert load_schema("result") == result_schema()  # `make schemas` writes it


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.parent.name)
def test_published_results_are_read_and_written_without_loss(path: Path) -> None:
    assert Result.of(read(path)).to_json() == read(path)


def test_a_field_that_earlier_kits_lack_is_absent_and_not_null() -> None:
    document = read(RESULTS[0])
    document["environment"].pop("separate_trainer", None)
    document["quality"]["core"].pop("answer_bpb", None)
    result = Result.of(document)
    assert result.quality.core is not None and not result.quality.core.answer_bpb
    assert result.to_json() == document
    document["quality"]["core"]["answer_bpb"] = None  # said, and therefore kept
    assert Result.of(document).to_json() == document


def test_a_count_that_is_written_as_a_float_is_refused_by_v01(tmp_path: Path) -> None:
    document = read(RESULTS[0])
    document["seed"]["value"] = float(document["seed"]["value"])
    (tmp_path / "result.json").write_text(json.dumps(document))
    report = verify_result(tmp_path)
    assert report.refused_by == ["V01"] and "an integer" in report.of("V01")[0].message


WRONG: list[tuple[str, tuple[str, ...], Any]] = [
    ("a missing section", ("timing",), None),
    ("a word for a number", ("timing", "total_s"), "fast"),
    ("a negative time", ("timing", "downtime_s"), -1.0),
    ("another track", ("recipe", "track"), "moon"),
    ("a short digest", ("log", "head"), "sha256:12"),
    ("a score above 1", ("quality", "core", "value"), 1.5),
    ("an unknown field", ("claims", "sponsor"), "x"),
    ("too many fields", ("energy",), {"kwh": 1.0, **{f"x{i}": i for i in range(20)}}),
    ("one end of an interval", ("quality", "core", "interval"), [0.1]),
    ("no tasks", ("quality", "core", "tasks"), []),
    ("null where a fact must stand", ("environment", "ld_preload"), None),
]


@pytest.mark.parametrize(("what", "place", "value"), WRONG, ids=[case[0] for case in WRONG])
def test_reader_and_schema_refuse_the_same_results(
    what: str, place: tuple[str, ...], value: Any
) -> None:
    document = copy.deepcopy(read(RESULTS[0]))
    section = document
    for name in place[:-1]:
        section = section[name]
    section[place[-1]] = value
    if what.startswith("a missing"):
        del section[place[-1]]
    with pytest.raises(SchemaError):
        Result.of(document)
    found = problems(document, "result")
    assert found and found[0].path.startswith(".".join(place)), found
