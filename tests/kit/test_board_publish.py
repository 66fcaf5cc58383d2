"""The board in a folder: decisions, tiers, statements, hostile text, rebuilding."""

import json
import shutil
from pathlib import Path
from typing import Any

import board_runs
import pytest
from click.testing import CliRunner

from kit.board.documents import make_statement, relative_path
from kit.board.layout import Layout
from kit.board.load import Board, load_board
from kit.board.package import document_items, pack
from kit.board.publish import publish
from kit.board.submit import place, submit_to_folder
from kit.cli.main import cli
from kit.errors import KitError, SchemaError
from kit.schemas import problems
from kit.text import markdown, plain
from kit.trust.sign import result_id

Document = dict[str, Any]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs of one recipe by several people, each on an own card unless said."""
    root = tmp_path_factory.mktemp("runs")
    return {
        "alice": board_runs.gpu_run(root / "alice", "alice", seed=11),
        "bob": board_runs.gpu_run(root / "bob", "bob", seed=12, bpb=0.8413),
        "carol": board_runs.gpu_run(root / "carol", "carol", seed=13, bpb=0.8520),
        "dave": board_runs.gpu_run(root / "dave", "dave", seed=14, bpb=0.8531),
        "erin": board_runs.gpu_run(
            root / "erin", "erin", seed=15, bpb=0.8411, card="card of alice", days=2
        ),
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "board"
    folder.mkdir()
    maintainer = {"name": "mia", "public_key": board_runs.signer_of("mia").public_key}
    board = {"schema_version": 1, "name": "b", "repository": None, "maintainers": [maintainer]}
    (folder / "board.json").write_text(json.dumps(board))
    return folder


def add(root: Path, run: Path, who: str, documents: list[Document] | None = None) -> str:
    signer = board_runs.signer_of(who)
    package = pack(run, who, board=str(root), documents=documents, signer=signer)
    submit_to_folder(root, package)
    return package.id


def say(root: Path, kind: str, row: str, who: str, **more: Any) -> Document:
    document = make_statement(
        kind, row, name=who, signer=board_runs.signer_of(who), reason="because", **more
    )
    place(root, document_items([document]))
    return document


VOUCHED = ("bob", "carol", "dave", "erin")


def published(root: Path, **options: Any) -> Board:
    """Publishes: rows are scored and four people vouched for, unless `options` say otherwise.

    Every row and event fits its schema, and the table rebuilds bit for bit.
    """
    options.setdefault("scorer", board_runs.AnswersScorer(root))
    options.setdefault("accounts", [board_runs.account(who) for who in VOUCHED])
    publish(root, **options)
    board = load_board(root)
    for row in board.rows:
        assert not problems(row, "leaderboard-row")
    for event in board.events:
        assert not problems(event, "board-event")
    done = CliRunner().invoke(cli, ["board", "rebuild", "--check", "--board", str(root)])
    assert done.exit_code == 0, done.exception
    return board


def last_reason(board: Board, path: str) -> str:
    (*_, event) = [e for e in board.events if e["data"].get("path") == path]
    return str(event["reason"])


# --- decisions and tiers ------------------------------------------------------------------------


def test_a_row_climbs_as_others_reproduce_it_and_its_figures_are_pooled(
    root: Path, runs: dict[str, Path]
) -> None:
    alice = add(root, runs["alice"], "alice")
    row = published(root, scorer=None).row(alice)
    assert (row["tier"], row["rank"]) == ("T1", None)
    assert row["why_not_ranked"][0].startswith("self-reported")
    row = published(root).row(alice)
    assert (row["tier"], row["rank"], row["standing"], row["pooled"]["n"]) == ("T2", 1, "single", 1)

    check = board_runs.reproduction(runs["alice"], None, "bob")
    place(root, document_items([check]))
    assert published(root).row(alice)["tier"] == "T2"

    bob = add(
        root, runs["bob"], "bob", [board_runs.reproduction(runs["alice"], runs["bob"], "bob")]
    )
    board = published(root)
    row, own = board.row(alice), board.row(bob)
    assert row["tier"] == "T4" and row["tier_reason"] == "reproduced once, by bob"
    assert row["pooled"]["members"] == [alice, bob] and row["standing"] == "pooled"
    scores = [row["core"]["value"], own["core"]["value"]]
    assert row["pooled"]["core"] == pytest.approx(sum(scores) / 2)
    half = row["pooled"]["core_high"] - row["pooled"]["core"]
    assert half == pytest.approx(1.96 * 0.0052 / 2**0.5)
    assert own["rank"] is None
    assert own["why_not_ranked"] == [f"counted as a reproduction of {alice}"]
    tiers = [
        (e["data"]["from"], e["data"]["to"]) for e in board.events_of(alice) if e["ev"] == "tier"
    ]
    assert tiers == [(None, "T1"), ("T1", "T2"), ("T2", "T4")]
    assert [one["by"]["name"] for one in board.reproductions_of(alice)] == ["bob", "bob"]


NOT_COUNTED = {
    "one's own": ("alice", "alice", {}, "own submitter"),
    "the same card": ("erin", "erin", {}, "very same card"),
    "another recipe": ("bob", "bob", {"recipe": "sha256:" + "0" * 64}, "another recipe"),
}


@pytest.mark.parametrize("name", NOT_COUNTED)
def test_what_is_no_reproduction_is_rejected_with_its_reason(
    root: Path, runs: dict[str, Path], name: str
) -> None:
    own, who, more, reason = NOT_COUNTED[name]
    alice = add(root, runs["alice"], "alice")
    changes: Document = {}
    if "recipe" in more:
        image = board_runs.result_of(runs["alice"])["image"]["digest"]
        changes["of"] = {"result_id": alice, "recipe_digest": more["recipe"], "image": image}
    document = board_runs.reproduction(runs["alice"], runs[own], who, **changes)
    add(root, runs[own], who, [document])
    board = published(root)
    assert board.row(alice)["tier"] == "T2"
    assert reason in last_reason(board, relative_path(document))
    assert board.row(alice)["reproductions"] == []


def test_a_reproduction_without_its_own_result_waits_for_it(
    root: Path, runs: dict[str, Path]
) -> None:
    alice = add(root, runs["alice"], "alice")
    document = board_runs.reproduction(runs["alice"], runs["bob"], "bob")
    place(root, document_items([document]))
    board = published(root)
    assert "is not accepted on this board" in last_reason(board, relative_path(document))
    add(root, runs["bob"], "bob")
    assert published(root).row(alice)["tier"] == "T4"


def test_the_board_compares_for_itself_and_two_contradictions_make_a_row_disputed(
    root: Path, runs: dict[str, Path]
) -> None:
    alice = add(root, runs["alice"], "alice")
    claims_fine = board_runs.reproduction(runs["alice"], runs["carol"], "carol")
    add(root, runs["carol"], "carol", [claims_fine])
    row = published(root).row(alice)
    assert row["tier"] == "T2" and row["state"] == "listed"
    assert [(one["verdict"], one["counted"]) for one in row["reproductions"]] == [("worse", False)]

    second = board_runs.reproduction(runs["alice"], runs["dave"], "dave")
    add(root, runs["dave"], "dave", [second])
    row = published(root).row(alice)
    assert row["state"] == "disputed" and row["rank"] is None
    assert row["why_not_ranked"] == ["2 people found it worse than claimed at p < 0.01"]

    say(root, "resolution", alice, "mia", dispute=result_id(second), upheld=False)
    assert published(root).row(alice)["state"] == "listed"


def test_statements_move_rows_only_under_the_right_keys(root: Path, runs: dict[str, Path]) -> None:
    alice = add(root, runs["alice"], "alice")
    published(root)
    for kind, who, more in (
        ("withdrawal", "bob", {}),
        ("rescore", "alice", {"figures": {"core": 0.3}}),
        ("resolution", "bob", {"dispute": "0" * 16, "upheld": False}),
        ("dispute", "alice", {}),
    ):
        document = say(root, kind, alice, who, **more)
        board = published(root)
        assert board.row(alice)["state"] == "listed"
        (*_, event) = board.events_of(alice)
        assert (event["data"]["path"], event["data"]["decision"]) == (
            relative_path(document),
            "rejected",
        )

    doubt = say(root, "dispute", alice, "bob")
    row = published(root).row(alice)
    assert row["state"] == "listed" and [s["kind"] for s in row["statements"]] == ["dispute"]
    say(root, "resolution", alice, "mia", dispute=result_id(doubt), upheld=True)
    assert published(root).row(alice)["state"] == "disputed"

    say(root, "rescore", alice, "mia", figures={"core": 0.2})
    row = published(root).row(alice)
    assert row["core"]["value"] == 0.2 and row["pooled"]["core"] == 0.2
    say(root, "withdrawal", alice, "alice")
    board = published(root)
    assert board.row(alice)["state"] == "withdrawn"
    states = [e["data"]["to"] for e in board.events_of(alice) if e["ev"] == "state"]
    assert states == ["listed", "disputed", "withdrawn"]


def test_a_statement_is_refused_when_anything_about_it_is_not_its_own(
    root: Path, runs: dict[str, Path]
) -> None:
    alice = add(root, runs["alice"], "alice")
    good = make_statement(
        "dispute", alice, name="bob", signer=board_runs.signer_of("bob"), reason="because"
    )
    path = root / relative_path(good)
    path.parent.mkdir(parents=True)
    forged = {
        path: {**good, "reason": "changed afterwards"},
        path.with_name(path.name.replace("bob", "carol")): good,
        root / "statements" / ("0" * 16) / path.name: good,
    }
    for place_, document in forged.items():
        place_.parent.mkdir(parents=True, exist_ok=True)
        place_.write_text(json.dumps(document))
    board = published(root)
    assert board.row(alice)["statements"] == []
    decisions = {e["data"]["path"]: e for e in board.events if e["ev"] == "statement"}
    assert len(decisions) == 3
    assert all(event["data"]["decision"] == "rejected" for event in decisions.values())


def test_commands_state_and_show_them(root: Path, runs: dict[str, Path], tmp_path: Path) -> None:
    alice = add(root, runs["alice"], "alice")
    published(root)
    words = ["board", "dispute", alice[:6], "--board", str(root), "--as", "bob", "--yes"]
    words += ["--reason", "odd", "--evidence", "V14", "--work", str(tmp_path / "work")]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.output
    board = published(root)
    (statement,) = board.statements_of(alice)
    assert (statement["reason"], statement["evidence"]) == ("odd", ["V14"])


# --- what is rejected ---------------------------------------------------------------------------


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def spoil_log(folder: Path) -> None:
    path = folder / "events.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"loss":1', b'"loss":2', 1))


SPOILED = {
    "an edited log": (spoil_log, "V04"),
    "an edited result": (lambda f: edit_json(f / "result.json", notes=["better"]), "V02"),
    "no README": (lambda f: (f / "README.md").unlink(), "V01"),
    "a script": (lambda f: (f / "run.py").write_text("print(1)"), "V01"),
    "a link": (lambda f: (f / "eval/more.json").symlink_to("/etc/passwd"), "V01"),
    "another's name": (lambda f: edit_json(f / "submission.json", submitter="bob"), "V03"),
    "another's weights": (
        lambda f: edit_json(
            f / "submission.json", model={"repository": "models/bob/m", "revision": None}
        ),
        "V21",
    ),
    "a form of tomorrow": (lambda f: edit_json(f / "submission.json", schema_version=2), "V01"),
    "a bomb": (lambda f: (f / "submission.json").write_text("[" * 100_000), "V01"),
    "a huge README": (lambda f: (f / "README.md").write_text("x" * 300_000), "V01"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_a_spoiled_submission_is_rejected_by_its_check_once(
    root: Path, runs: dict[str, Path], name: str
) -> None:
    spoil, check = SPOILED[name]
    alice = add(root, runs["alice"], "alice")
    spoil(root / "2026/alice" / alice)
    board = published(root)
    assert board.rows == []
    (event,) = [e for e in board.events if e["ev"] == "submission"]
    assert event["data"]["decision"] == "rejected"
    assert event["data"]["checks"][check] == "fail", event["reason"]
    assert publish(root).events == 0


def test_swapped_weights_and_copied_runs_are_found(
    root: Path, runs: dict[str, Path], tmp_path: Path
) -> None:
    alice = add(root, runs["alice"], "alice")
    (weights,) = (root / "models/alice").rglob("sft/model.safetensors")
    honest = weights.read_bytes()
    weights.write_bytes(honest[:-1] + b"?")
    (event,) = [e for e in published(root).events if e["ev"] == "submission"]
    assert event["data"]["checks"]["V21"] == "fail"
    weights.write_bytes(honest)
    publish(root, recheck=True)
    assert load_board(root).row(alice)["tier"] == "T1"

    copied = board_runs.gpu_run(
        tmp_path / "mallory",
        "mallory",
        seed=99,
        changes=lambda draft: draft.files.update(
            {n: (runs["alice"] / n).read_bytes() for n in draft.files if "safetensors" in n}
        ),
    )
    mallory = add(root, copied, "mallory")
    board = published(root)
    assert len(board.rows) == 1
    assert "the weights are a copy of another row's weights" in last_reason(
        board, f"2026/mallory/{mallory}"
    )


def test_nobody_takes_over_a_row_by_copying_it(root: Path, runs: dict[str, Path]) -> None:
    alice = add(root, runs["alice"], "alice")
    published(root)
    copied = root / "2026/aaa" / alice
    shutil.copytree(root / "2026/alice" / alice, copied)
    edit_json(copied / "submission.json", submitter="aaa", model=None)
    (row,) = published(root).rows
    assert row["submitter"] == "alice"


def test_a_key_stays_with_its_first_submitter(
    root: Path, runs: dict[str, Path], tmp_path: Path
) -> None:
    add(root, runs["alice"], "alice")
    published(root)
    second = board_runs.gpu_run(tmp_path / "second", "alice", seed=77)
    taken = add(root, second, "mallory")
    board = published(root)
    assert len(board.rows) == 1
    assert "the key of alice" in last_reason(board, f"2026/mallory/{taken}")


def test_a_revoked_key_takes_its_rows_along(root: Path, runs: dict[str, Path]) -> None:
    from kit.trust.keys import revoke

    alice, bob = add(root, runs["alice"], "alice"), add(root, runs["bob"], "bob")
    published(root)
    revoke(root, board_runs.signer_of("alice").public_key, "lost")
    board = published(root)  # no flag is needed
    assert [row["id"] for row in board.rows] == [bob]
    assert "revoked by its owner" in last_reason(board, f"2026/alice/{alice}")


def test_a_vanished_submission_leaves_the_table_and_a_reason(
    root: Path, runs: dict[str, Path]
) -> None:
    alice = add(root, runs["alice"], "alice")
    published(root)
    shutil.rmtree(root / "2026/alice")
    board = published(root)
    assert board.rows == []
    assert "no longer on the board" in last_reason(board, f"2026/alice/{alice}")


# --- hostile text -------------------------------------------------------------------------------

NASTY = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    '=HYPERLINK("http://evil","x")',
    "+cmd|' /C calc'!A0",
    "\u202eevil\u202c txt.exe",
    "a\u0301\u0301\u0301\u0301\u0301\u0301",
    "line\nbreak\r\x1b[31mred\x00",
    "[click](javascript:alert(1)) | pipe | `tick` @everyone",
    "../../../etc/passwd",
    "x" * 5000,
)


@pytest.mark.parametrize("text", NASTY)
def test_text_reads_one_way_and_stays_in_its_cell(text: str) -> None:
    line = plain(text, 300)
    assert len(line) <= 300 and "\n" not in line and "\x1b" not in line
    assert not any(0x202A <= ord(c) <= 0x202E or 0x2066 <= ord(c) <= 0x2069 for c in line)
    cell = markdown(text, 300)
    assert not set(cell) & set('<>|`[]"*_@') - {'"'}


def test_a_hostile_submission_is_shown_harmlessly(root: Path, tmp_path: Path) -> None:
    from kit.board.pull_request import PullRequest, comment

    quoted = json.dumps("".join(t for t in NASTY if "\x00" not in t)[:280])
    recipe = board_runs.day().recipe.replace('"a run as the reference recipe makes them"', quoted)
    assert quoted in recipe
    run = board_runs.gpu_run(
        tmp_path / "run", "mallory", recipe=recipe, notes=[t[:900] for t in NASTY]
    )
    row_id = add(root, run, "mallory")
    done = publish(root)
    (row,) = load_board(root).rows
    assert row["id"] == row_id and not problems(row, "leaderboard-row")
    assert "\u202e" not in json.dumps(row, ensure_ascii=False)
    said = comment(PullRequest(1, "mallory", "open", "0" * 40), done.new[0], [])
    assert "<script" not in said and "\u202e" not in said
    for readme in root.rglob("README.md"):
        assert "<script" not in readme.read_text() and "onerror=alert" not in "".join(
            line for line in readme.read_text().splitlines() if "<" in line
        )


def test_names_that_lead_elsewhere_are_no_submissions(root: Path, runs: dict[str, Path]) -> None:
    alice = add(root, runs["alice"], "alice")
    source = root / "2026/alice" / alice
    for name in ("..evil", "a\u202eb", "x" * 200, "con.", "-dash", "sp ace"):
        shutil.copytree(source, root / "2026" / name / alice)
    (root / "2026/linked").symlink_to(root / "2026/alice")
    (root / "1999").symlink_to("/etc")
    assert [str(path) for path in Layout(root).submissions()] == [f"2026/alice/{alice}"]
    with pytest.raises(SchemaError):
        make_statement("dispute", alice, name="../x", signer=board_runs.signer_of("x"), reason="r")


# --- the chain and the table --------------------------------------------------------------------


def test_an_edited_chain_or_table_is_noticed(root: Path, runs: dict[str, Path]) -> None:
    add(root, runs["alice"], "alice")
    published(root)
    layout = Layout(root)
    table = layout.leaderboard.read_bytes()
    layout.leaderboard.write_bytes(table.replace(b'"rank":1', b'"rank":2'))
    done = CliRunner().invoke(cli, ["board", "rebuild", "--check", "--board", str(root)])
    assert done.exit_code == 1 and "leaderboard.jsonl" in str(done.exception)
    publish(root)
    assert layout.leaderboard.read_bytes() == table
    events = layout.events.read_bytes()
    layout.events.write_bytes(events.replace(b'"to":"T2"', b'"to":"T4"'))
    with pytest.raises(SchemaError, match="damaged"):
        publish(root)
    layout.events.write_bytes(events)
    (readme,) = (root / "2026").rglob("README.md")
    readme.write_text("changed")
    with pytest.raises(KitError, match="was judged"):
        from kit.board.publish import rebuild

        rebuild(root)


def test_parquet_and_jsonl_hold_the_same_rows(root: Path, runs: dict[str, Path]) -> None:
    from pyarrow import parquet

    for who in ("alice", "carol"):
        add(root, runs[who], who)
    board = published(root)
    rows = parquet.read_table(board.layout.parquet).to_pylist()
    assert [{**row, "checks": dict(row["checks"])} for row in rows] == board.rows


def test_this_repositorys_board_is_whole() -> None:
    """What is committed is what the events and files give, and verifies."""
    root = Path(__file__).parents[2] / "submissions"
    done = CliRunner().invoke(cli, ["board", "rebuild", "--check", "--board", str(root)])
    assert done.exit_code == 0, done.exception
    board = load_board(root)
    kinds = {row["kind"] for row in board.rows}
    assert kinds == {"submission", "reference"}
    assert all(row["rank"] is None for row in board.rows)
