"""`prepare` and the CORE bundle, in small."""

import hashlib
import shutil

import pytest
from hub_server import Answer
from prepare_place import SHARED, SMALL, Place, archive, recipe_of, recipe_text
from prepare_place import core_place as core_place
from prepare_place import hub as hub
from prepare_place import place as place
from prepare_place import small_core as small_core

from kit.core_eval.bundle import open_bundle
from kit.errors import KitError, PrerequisiteError


@pytest.mark.parametrize("where", ["/eval_bundle.zip", "/published.zip"])
def test_the_core_bundle_comes_from_the_mirror_or_else_from_where_it_is_published(
    core_place: Place, where: str
) -> None:
    evil = {"../../evil.txt": b"out", "/evil.txt": b"out", "eval_data/evil.jsonl": b"unknown"}
    core_place.hub.plain[where] = archive({**SMALL, **evil})
    core_place.hub.faults[where[1:]] = [Answer(cut=100)]
    core_place.prepare()
    root = core_place.work / "core"
    there = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    assert there == set(SMALL)
    assert not list(core_place.root.rglob("evil*"))
    assert not list((core_place.work / "cache").rglob("*.zip*"))
    core_place.hub.plain.clear()
    assert core_place.prepare() is False


def test_an_archive_with_another_file_is_refused_with_both_digests(core_place: Place) -> None:
    name = "eval_data/world/a.jsonl"
    core_place.hub.plain["/published.zip"] = archive({**SMALL, name: SMALL[name] + b"{}" * 10**6})
    with pytest.raises(KitError, match="is not the file of the CORE bundle") as refused:
        core_place.prepare()
    assert refused.value.facts["expected"] == "sha256:" + hashlib.sha256(SMALL[name]).hexdigest()
    assert refused.value.facts["found"].startswith("sha256:")
    assert not (core_place.work / "core" / "core.yaml").exists()
    core_place.hub.plain["/published.zip"] = archive(SMALL)
    assert core_place.prepare() is True, "a refused archive is not kept"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"no archive", "not a readable archive"),
        (archive({"core.yaml": b"x"}), r"(lacks|not the file)"),
    ],
)
def test_a_broken_archive_is_named(core_place: Place, data: bytes, message: str) -> None:
    core_place.hub.plain["/published.zip"] = data
    with pytest.raises(KitError, match=message):
        core_place.prepare()


def test_a_changed_core_file_is_refused_and_a_missing_one_fetched(core_place: Place) -> None:
    core_place.hub.plain["/published.zip"] = archive(SMALL)
    core_place.prepare()
    path = core_place.work / "core" / "eval_data" / "world" / "a.jsonl"
    path.write_bytes(b"other")
    with pytest.raises(KitError, match="not the file of the CORE bundle"):
        core_place.prepare()
    path.unlink()
    assert core_place.prepare() is True
    assert path.read_bytes() == SMALL["eval_data/world/a.jsonl"]


@pytest.mark.parametrize("layout", ["core", "", "zip"])
def test_the_core_bundle_comes_from_a_folder(core_place: Place, layout: str) -> None:
    mirror = core_place.root / "mirror"
    mirror.mkdir()
    if layout == "zip":
        (mirror / "eval_bundle.zip").write_bytes(archive(SMALL, prefix=""))
    else:
        for name, data in SMALL.items():
            path = mirror / layout / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    core_place.prepare(mirror=mirror)
    assert (core_place.work / "core" / "core.yaml").read_bytes() == SMALL["core.yaml"]
    assert not core_place.hub.requests
    if layout == "zip":
        assert (mirror / "eval_bundle.zip").is_file()
    with pytest.raises(PrerequisiteError, match="has no CORE bundle"):
        shutil.rmtree(core_place.work)
        core_place.prepare(mirror=core_place.root)


@pytest.mark.skipif(not (SHARED / "core").is_dir(), reason="no CORE bundle: set N4090_SHARED")
def test_the_real_bundle_from_a_folder_is_accepted(place: Place) -> None:
    place.recipe = recipe_of(recipe_text(core=True), place.root)
    place.prepare(mirror=SHARED, parts=["core"])
    assert open_bundle(place.work / "core").kind == "core"
