"""What `prepare` survives, and how it says what it does not."""

import errno
import hashlib
import socket
import time
from pathlib import Path

import pyarrow as pa
import pytest
from hub_server import Answer
from prepare_place import (
    ARC,
    CHATS,
    CORPUS,
    Place,
    parquet,
    recipe_of,
    recipe_text,
    shard,
)
from prepare_place import hub as hub
from prepare_place import place as place

from kit.cli.prepare import say_need
from kit.errors import KitError, PrerequisiteError, SchemaError
from kit.prepare.fetch import check, inputs_for_run
from kit.prepare.inputs import locate
from kit.prepare.job import Need
from kit.prepare.transfer import retry_after_s


def test_a_broken_connection_is_resumed_where_it_broke(place: Place) -> None:
    place.hub.faults["shard_00001.parquet"] = [Answer(cut=15_000), Answer(cut=5_000)]
    place.prepare()
    assert place.hub.fetched("shard_00001") == [None, "bytes=15000-", "bytes=20000-"]


def test_a_server_without_ranges_is_read_from_the_start(place: Place) -> None:
    data = place.hub.commits[CORPUS][place.hub.head[CORPUS]]["shard_00001.parquet"]
    place.hub.faults["shard_00001.parquet"] = [Answer(cut=15_000), Answer(status=416), Answer()]
    place.prepare()
    assert (place.folder / "pretrain" / "shard_00001.parquet").read_bytes() == data
    assert place.hub.fetched("shard_00001")[-1] is None


@pytest.mark.parametrize("name", ["shard_00000.parquet", "main", "COMMIT"])
@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_waited_for(place: Place, name: str, status: int) -> None:
    name = name.replace("COMMIT", place.hub.head[CORPUS])
    headers = {"Retry-After": "1"} if name == "shard_00000.parquet" else {}
    place.hub.faults[name] = [Answer(status=status, headers=headers)]
    begun = time.monotonic()
    place.prepare()
    if headers:
        assert time.monotonic() - begun >= 0.95
    if name == "shard_00000.parquet":
        [note] = place.watcher.notes
        assert note == f"shard_00000.parquet: the server answers {status}; waiting 1 s as it asks"


def test_a_server_that_stays_busy_ends_in_one_message(place: Place) -> None:
    place.hub.faults["shard_00000.parquet"] = [Answer(status=503)] * 3
    with pytest.raises(PrerequisiteError, match="answers 503, 3 times in a row") as ended:
        place.prepare()
    assert "resumes where it stopped" in (ended.value.hint or "")
    assert place.prepare() is True


def test_a_wait_of_hours_is_not_begun(place: Place) -> None:
    place.hub.faults["shard_00000.parquet"] = [Answer(status=429, headers={"Retry-After": "7200"})]
    with pytest.raises(PrerequisiteError, match="come back in 120 minutes"):
        place.prepare()


def test_retry_after_is_understood_in_all_its_forms() -> None:
    assert retry_after_s({"Retry-After": "7"}) == 7
    assert retry_after_s({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert retry_after_s({"Retry-After": "soon"}) is None
    assert retry_after_s({"ratelimit": '"api";r=0;t=55'}) == 55
    assert retry_after_s({}) is None


def test_a_wrong_digest_is_refused_with_both_digests(place: Place) -> None:
    right = place.hub.commits[CORPUS][place.hub.head[CORPUS]]["shard_00000.parquet"]
    wrong = right[:-1] + b"?"
    place.hub.faults["shard_00000.parquet"] = [Answer(body=wrong)]
    with pytest.raises(KitError, match="not the file that was announced") as refused:
        place.prepare()
    assert refused.value.exit_code == 1
    assert refused.value.facts["expected"] == "sha256:" + hashlib.sha256(right).hexdigest()
    assert refused.value.facts["found"] == "sha256:" + hashlib.sha256(wrong).hexdigest()
    assert not list(place.work.rglob("shard_00000.parquet*"))
    with pytest.raises(PrerequisiteError, match="lacks inputs"):
        locate(place.recipe, place.work, {})
    assert place.prepare() is True


def test_left_over_bytes_of_another_file_are_fetched_anew(place: Place) -> None:
    place.hub.faults["shard_00000.parquet"] = [Answer(cut=9_000)] + [Answer(status=503)] * 2
    with pytest.raises(PrerequisiteError):
        place.prepare()
    [part] = place.work.rglob("shard_00000.parquet.part")
    part.write_bytes(b"x" * 9_000)
    place.hub.faults.clear()
    place.prepare()
    assert place.hub.fetched("shard_00000")[-2:] == ["bytes=9000-", None]
    assert "downloading it again" in place.watcher.notes[-1]


def test_a_remote_file_that_changed_is_refused_with_both_digests(place: Place) -> None:
    place.prepare()
    files = place.hub.commits[CORPUS][place.hub.head[CORPUS]]
    old, new = files["shard_00001.parquet"], shard(77)
    files["shard_00001.parquet"] = new
    (place.folder / "pretrain" / "shard_00001.parquet").unlink()
    with pytest.raises(KitError, match="changed at its source") as refused:
        place.prepare()
    assert hashlib.sha256(old).hexdigest() in refused.value.facts["expected"]
    assert hashlib.sha256(new).hexdigest() in refused.value.facts["found"]
    assert "dataset.lock.json" in (refused.value.hint or "")


def test_a_local_file_that_changed_is_refused_with_both_digests(place: Place) -> None:
    place.prepare()
    path = place.folder / "pretrain" / "shard_00001.parquet"
    right = path.read_bytes()
    path.unlink()
    path.write_bytes(right + b"more")
    for attempt in (
        place.prepare,
        lambda: check(place.recipe, place.work, ["pretrain"]),
        lambda: inputs_for_run(place.recipe, place.work, {}, None),
    ):
        with pytest.raises(KitError, match="has changed since it was prepared") as refused:
            attempt()
        assert refused.value.facts["expected"] == "sha256:" + hashlib.sha256(right).hexdigest()
        assert refused.value.facts["found"].startswith("sha256:")
    path.unlink()  # the remedy the message names
    assert place.prepare() is True
    assert path.read_bytes() == right


def test_a_file_beside_the_locked_ones_is_refused(place: Place) -> None:
    place.prepare()
    (place.folder / "pretrain" / "mine.parquet").write_bytes(shard(3))
    with pytest.raises(KitError, match=r"mine\.parquet is not in dataset\.lock\.json"):
        place.prepare()


def test_a_damaged_lock_is_named(place: Place) -> None:
    place.prepare()
    (place.folder / "dataset.lock.json").write_text('{"parts": {"pretrain": {}}}')
    with pytest.raises(SchemaError, match="is damaged"):
        place.prepare()


def test_a_small_disk_is_refused_before_the_first_byte(place: Place) -> None:
    needs: list[Need] = []
    with pytest.raises(PrerequisiteError, match=r"too small: .* needed, 0\.00 GiB free") as refused:
        place.prepare(free_bytes=lambda folder: 1000, agree=lambda need: bool(needs.append(need)))
    assert "--shards" in (refused.value.hint or "")
    assert not place.hub.fetched("shard")
    assert (needs[0].files, needs[0].free_bytes) == (3, 1000)
    assert "Time: unknown yet" in say_need(needs[0])


def test_a_full_disk_ends_in_one_message_and_goes_on_later(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.hardlink_to

    def full(path: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "hardlink_to", full)
    with pytest.raises(PrerequisiteError, match="No space left on device") as ended:
        place.prepare()
    assert "--work" in (ended.value.hint or "")
    monkeypatch.setattr(Path, "hardlink_to", real)
    assert place.prepare() is True
    assert len(place.hub.fetched("shard")) == 3


def test_declining_fetches_nothing(place: Place) -> None:
    with pytest.raises(PrerequisiteError, match="nothing was fetched"):
        place.prepare(agree=lambda need: False)
    assert not place.hub.fetched("shard")


def test_no_network_is_one_message_with_the_remedy(place: Place) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(PrerequisiteError, match="cannot be reached") as ended:
            place.prepare(mirror=address)
    assert address in ended.value.message
    assert "--mirror DIR" in (ended.value.hint or "")


def test_a_network_that_goes_away_keeps_what_came(place: Place) -> None:
    place.hub.faults["shard_00004.parquet"] = [Answer(cut=12_000), Answer(cut=0), Answer(cut=0)]
    with pytest.raises(PrerequisiteError, match="3 times in a row"):
        place.prepare()
    [part] = place.work.rglob("shard_00004.parquet.part")
    assert part.stat().st_size == 12_000
    assert place.prepare() is True
    assert place.hub.fetched("shard_00004")[-1] == "bytes=12000-"


def test_an_unknown_repository_or_revision_is_named(place: Place) -> None:
    place.recipe = recipe_of(recipe_text().replace(CORPUS, "maker/corpse"), place.root)
    with pytest.raises(PrerequisiteError, match="has no dataset maker/corpse"):
        place.prepare()
    text = recipe_text().replace("shards = 2", f'shards = 2\nrevision = "{"0" * 40}"')
    place.recipe = recipe_of(text, place.root)
    with pytest.raises(PrerequisiteError, match="has no revision 0000"):
        place.prepare()


def test_a_server_that_is_no_hub_is_named(place: Place) -> None:
    place.hub.plain[f"/no/api/datasets/{CORPUS}/revision/main"] = b"<html>Welcome</html>"
    with pytest.raises(SchemaError, match=r"not the Hub's JSON|does not answer like the Hub"):
        place.prepare(mirror=f"{place.hub.url}/no")


def test_a_pattern_without_files_is_named(place: Place) -> None:
    text = recipe_text(everything=True).replace("data/train-*", "data/drain-*")
    place.recipe = recipe_of(text, place.root)
    with pytest.raises(PrerequisiteError, match=r"no file data/drain-\*\.parquet") as ended:
        place.prepare(parts=["sft"])
    assert "data/train-00000-of-00002.parquet" in (ended.value.hint or "")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"no parquet at all", "cannot be read as parquet"),
        (parquet(body=["a"]), "has no column 'text'; it has body"),
        (parquet(text=pa.array([], pa.string())), "holds no documents"),
    ],
)
def test_a_bad_shard_is_named_and_not_used(place: Place, data: bytes, message: str) -> None:
    files = place.hub.commits[CORPUS][place.hub.head[CORPUS]]
    place.hub.commit(CORPUS, {**files, "shard_00001.parquet": data})
    with pytest.raises(SchemaError, match=message) as refused:
        place.prepare()
    assert "shard_00001.parquet" in refused.value.message
    with pytest.raises(PrerequisiteError):
        locate(place.recipe, place.work, {})


def test_bad_rows_are_named(place: Place) -> None:
    place.recipe = recipe_of(recipe_text(everything=True), place.root)
    bad = parquet(**{**ARC, "answerKey": ["B", "9"]})
    place.hub.commit(
        "allenai/ai2_arc", {"ARC-Easy/test-0.parquet": bad, "ARC-Challenge/test-0.parquet": bad}
    )
    with pytest.raises(SchemaError, match="row 1"):
        place.prepare(parts=["chat_eval"])
    place.hub.commit(CHATS, {"data/train-0.parquet": parquet(text=["no messages"])})
    with pytest.raises(SchemaError, match="has no column messages; it has text"):
        place.prepare(parts=["sft"])
