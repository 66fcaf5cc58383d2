"""Rows named, checked and refused before anything of them is done again; statements that hold."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import board_runs
import boards
import pytest
from click.testing import CliRunner, Result

from kit.board import reproduce
from kit.board.claim import Claim, find_claim, with_weights
from kit.board.documents import check_document
from kit.board.statistics import figures_of
from kit.cli.main import cli
from kit.errors import KitError, PrerequisiteError, SchemaError
from kit.recipe import load_recipe, named_recipes
from kit.trust.sign import result_id


def quiet(text: str) -> None:
    pass


@pytest.fixture(scope="module")
def row(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of alice's, whose recipe is one that the installed trainer runs."""
    return board_runs.gpu_run(tmp_path_factory.mktemp("alice") / "run", "alice", seed=11)


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory, row: Path) -> Path:
    root = tmp_path_factory.mktemp("board")
    line = boards.add_submission(root, row, boards.row(1, submitter="alice"))
    return boards.write_board(root, [line, boards.reference("GPT-2", 0.2, None)])


def claim_of(folder: Path, **changes: Any) -> Claim:
    result = json.loads((folder / "result.json").read_text())
    return Claim(**{"result": result, "folder": folder, "submitter": "alice", **changes})


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["reproduce", *map(str, arguments)])


def test_a_row_is_found_by_id_path_and_folder(board: Path, row: Path, tmp_path: Path) -> None:
    name = result_id(json.loads((row / "result.json").read_text()))
    folder = board / "2026" / "alice" / name
    for given in (name, name[:6], f"2026/alice/{name}"):
        found = find_claim(given, str(board), tmp_path, quiet)
        assert (found.id, found.submitter, found.board) == (name, "alice", board)
    for given in (folder, folder / "result.json", row):
        assert find_claim(str(given), "nowhere", tmp_path, quiet).id == name
    assert find_claim(str(folder), "nowhere", tmp_path, quiet).board == board


@pytest.mark.parametrize("name", ["ffff", "ref-gpt-2", "../../etc", ""])
def test_what_is_no_row_is_said(board: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises((PrerequisiteError, SchemaError)):
        find_claim(name or "zzzz", str(board), tmp_path, quiet)


def test_another_host_than_the_hub_is_not_asked(tmp_path: Path) -> None:
    address = "https://evil.example/datasets/n4090/leaderboard/submissions/2026/a/" + "0" * 16
    with pytest.raises(PrerequisiteError, match=r"evil.example is not the Hub"):
        find_claim(address, "n4090/leaderboard", tmp_path, quiet)


def test_a_good_row_may_be_run(row: Path) -> None:
    assert reproduce.safe_recipe(claim_of(row), None).name == "d20"


def test_a_row_that_does_not_hold_is_not_run(row: Path, tmp_path: Path) -> None:
    shutil.copytree(row, tmp_path / "bad")
    path = tmp_path / "bad" / "result.json"
    path.write_text(path.read_text().replace('"seed": {\n    "source"', '"seed": {\n    "source"'))
    result = json.loads(path.read_text())
    result["timing"]["total_s"] = 1.0
    path.write_text(json.dumps(result))
    with pytest.raises(KitError, match="does not hold by itself: V02"):
        reproduce.safe_recipe(claim_of(tmp_path / "bad"), None)
    with pytest.raises(KitError, match="withdrawn"):
        reproduce.safe_recipe(claim_of(row, state="withdrawn"), None)


OWN_TRAINER = '[trainer]\ncommand = ["python", "{recipe_dir}/evil.py"]\nloader = "evil.py:load"\n'


def test_a_strangers_trainer_runs_only_from_a_folder_that_is_named(tmp_path: Path) -> None:
    recipe = board_runs.day().recipe.replace("closed", "open") + OWN_TRAINER
    run = board_runs.gpu_run(tmp_path / "run", "alice", recipe=recipe)
    with pytest.raises(KitError, match="trainer of its own") as refused:
        reproduce.safe_recipe(claim_of(run), None)
    assert refused.value.facts["command"] == "python {recipe_dir}/evil.py"
    code = tmp_path / "code"
    code.mkdir()
    assert reproduce.safe_recipe(claim_of(run), code).folder == code


@pytest.mark.parametrize(
    ("text", "leads"),
    [
        ("/etc/passwd", True),
        ("~/.ssh", True),
        ("../secret", True),
        ("a/../../b", True),
        ("OWNER/NAME:../../x", True),
        ("C:\\x", True),
        ("https://evil.example/x", True),
        ("a\nb", True),
        ("HuggingFaceTB/smol-smoltalk:data/test-*.parquet", False),
        ("arc_easy", False),
        ("SSSL", False),
    ],
)
def test_recipes_name_no_places_of_this_machine(text: str, leads: bool) -> None:
    assert reproduce.leads_elsewhere(text) is leads


def test_the_kits_own_recipes_are_safe() -> None:
    for name in named_recipes():
        for place, text in reproduce._strings(load_recipe(name).document):
            assert not reproduce.leads_elsewhere(text), (name, place, text)


def test_a_recipe_that_names_a_place_is_refused(tmp_path: Path) -> None:
    recipe = board_runs.day().recipe.replace("closed", "open")
    recipe = recipe.replace('repo = "karpathy/climbmix-400b-shuffle"', 'repo = "../x/y"')
    assert "../x/y" in recipe
    run = board_runs.gpu_run(tmp_path / "run", "alice", recipe=recipe)
    with pytest.raises(KitError):
        reproduce.safe_recipe(claim_of(run), None)


def test_ones_own_row_is_no_reproduction(row: Path) -> None:
    claim = claim_of(row)
    with pytest.raises(KitError, match="signed the row itself"):
        reproduce.refuse_same_person(claim, board_runs.signer_of("alice"), "bob")
    with pytest.raises(KitError, match="alice's own"):
        reproduce.refuse_same_person(claim, board_runs.signer_of("bob"), "alice")
    with pytest.raises(SchemaError, match="cannot be a name"):
        reproduce.refuse_same_person(claim, board_runs.signer_of("bob"), "../bob")
    reproduce.refuse_same_person(claim, board_runs.signer_of("bob"), "bob")


def test_the_very_card_is_refused(row: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claim = claim_of(row)
    theirs = figures_of(claim.result)["gpu_hash"]
    monkeypatch.setattr("kit.hardware.gpu_facts", lambda: {"gpus": [{"uuid_hash": theirs}]})
    with pytest.raises(KitError, match="very card"):
        reproduce.refuse_same_card(claim)
    monkeypatch.setattr("kit.hardware.gpu_facts", lambda: {"gpus": None})
    reproduce.refuse_same_card(claim)


def test_a_seed_of_ones_own_is_another(row: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = iter([11, 11, 7])
    monkeypatch.setattr(reproduce.secrets, "randbits", lambda bits: next(drawn))
    assert reproduce.own_seed(claim_of(row)) == 7


@pytest.mark.parametrize(
    ("bpb", "verdict"), [(0.8412, "confirmed"), (0.8414, "confirmed"), (0.8500, "worse")]
)
def test_an_own_run_is_compared_and_signed(
    row: Path, tmp_path: Path, bpb: float, verdict: str
) -> None:
    bob = board_runs.gpu_run(tmp_path / "bob", "bob", seed=12, bpb=bpb)
    own, claim = json.loads((bob / "result.json").read_text()), claim_of(row)
    checks, found, notes = reproduce.compare(claim, own)
    assert found == verdict and notes == []
    signed = reproduce.statement(
        claim,
        "run",
        name="bob",
        signer=board_runs.signer_of("bob"),
        own=own,
        found=figures_of(own),
        checks=checks,
        verdict=found,
        notes=notes,
    )
    check_document(signed, "reproduction")
    assert signed["of"]["result_id"] == claim.id and signed["result_id"] == result_id(own)
    signed["verdict"] = "confirmed" if verdict == "worse" else "worse"
    with pytest.raises(KitError):
        check_document(signed, "reproduction")


def test_runs_that_are_no_reproduction_are_refused(row: Path, tmp_path: Path) -> None:
    claim = claim_of(row)
    own = json.loads(
        (board_runs.gpu_run(tmp_path / "r", "bob", seed=12) / "result.json").read_text()
    )

    def changed(section: str, **values: Any) -> dict[str, Any]:
        return {**own, section: {**own[section], **values}}

    with pytest.raises(KitError, match="complete run"):
        reproduce.compare(claim, changed("claims", status="failed"))
    with pytest.raises(KitError, match="another recipe"):
        reproduce.compare(claim, changed("recipe", digest="sha256:" + "0" * 64))
    with pytest.raises(KitError, match="row's own seed"):
        reproduce.compare(claim, changed("seed", value=11))
    other = {**own["data"]["data"], "digest": "sha256:" + "0" * 64}
    with pytest.raises(PrerequisiteError, match="not the row's: data"):
        reproduce.compare(claim, changed("data", data=other))
    _, _, notes = reproduce.compare(claim, changed("software", torch="2.11.0"))
    assert len(notes) == 1 and notes[0].startswith("torch: ") and "2.11.0 here" in notes[0]


def test_weights_come_from_the_boards_folder_and_names_cannot_lead_out(
    board: Path, row: Path, tmp_path: Path
) -> None:
    claim = find_claim(str(row), "nowhere", tmp_path, quiet)
    assert with_weights(claim, tmp_path, quiet).folder == row
    name = claim.id
    text_only = find_claim(name, str(board), tmp_path, quiet)
    with pytest.raises(PrerequisiteError, match="not published"):
        with_weights(text_only, tmp_path, quiet)
    models = board / "models" / "alice" / "m"
    for part in ("tokenizer", "checkpoints"):
        shutil.copytree(row / part, models / part)
    model = {"repository": "models/alice/m", "revision": None}
    pinned = Claim(text_only.result, text_only.folder, "alice", model, board)
    found = with_weights(pinned, tmp_path, quiet).folder
    assert (found / "checkpoints/pretrain/config.json").is_file()
    assert not (found / "checkpoints/sft").exists()
    base = pinned.result["checkpoint"]["base"]
    evil = {**pinned.result, "checkpoint": {**pinned.result["checkpoint"], "base": {
        **base, "files": [{**base["files"][0], "path": "../../../x"}]}}}  # fmt: skip
    with pytest.raises(KitError, match="leads out"):
        with_weights(Claim(evil, found, "alice", model, board), tmp_path, quiet)


def test_the_command_refuses_in_words(board: Path, row: Path, tmp_path: Path) -> None:
    name = result_id(json.loads((row / "result.json").read_text()))
    where = ("--board", board, "--work", tmp_path)
    for arguments, words in (
        ((name, *where, "--check-only", "--replay", 2), "either --check-only or --replay"),
        ((name, *where), "names its signer"),
        (("ffff", *where, "--as", "bob"), "is not a row"),
        ((name, "--board", "no/such/folder", "--as", "bob"), "there is no board"),
    ):
        done = call(*arguments)
        told = done.output + str(getattr(done.exception, "message", ""))
        assert done.exit_code != 0 and words in told, told


def test_fetch_only_leaves_the_recipe_and_runs_nothing(
    board: Path, row: Path, tmp_path: Path
) -> None:
    name = result_id(json.loads((row / "result.json").read_text()))
    done = call(name, "--board", board, "--work", tmp_path, "--fetch-only", "-q")
    assert done.exit_code == 0, done.output
    path = tmp_path / "cache" / "rows" / name / "recipe.toml"
    assert path.read_text() == (row / "recipe.toml").read_text()
    assert not (tmp_path / "runs").exists() and not (tmp_path / "keys").exists()


def test_a_finished_run_is_compared_without_running(
    board: Path, row: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bob = board_runs.gpu_run(tmp_path / "bob", "bob", seed=12)
    monkeypatch.setattr(
        "kit.trust.keys.load_or_create_signer", lambda *_: board_runs.signer_of("bob")
    )
    name = result_id(json.loads((row / "result.json").read_text()))
    done = call(name, "--board", board, "--work", tmp_path, "--as", "bob", "--run", bob, "--json")
    assert done.exit_code == 0, (done.output, done.exception)
    signed = json.loads((bob / "reproduction.json").read_text())
    check_document(signed, "reproduction")
    assert signed["verdict"] == "confirmed"
    assert json.loads(done.stdout) == signed
