"""Registered groups: numbers given out once, seeds from the challenge, all runs shown."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tamper
from click.testing import CliRunner, Result

from kit.cli.main import cli
from kit.errors import KitError, PrerequisiteError
from kit.recipe import load_recipe, parse_recipe
from kit.result import energy_section, runs_section
from kit.run.group import challenge_seed, open_group, register, registration_problem
from kit.run_log import RunLog
from kit.trust.keys import load_or_create_signer
from kit.verify import Options, verify_result

RECIPE = parse_recipe(tamper.RECIPE, folder=Path(), label="recipe")


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def test_numbers_are_given_out_once_and_seeds_follow_the_challenge(tmp_path: Path) -> None:
    signer = load_or_create_signer(tmp_path / "keys")
    made = register(tmp_path, RECIPE, 2, signer, "what the board drew")
    group = open_group(tmp_path, made.id)
    assert registration_problem(group.document) is None and group.id == made.id
    assert [group.claim("a"), group.claim("b")] == [0, 1]
    with pytest.raises(PrerequisiteError, match="all 2 runs"):
        group.claim("c")
    seeds = [challenge_seed("what the board drew", signer.public_key, i) for i in range(2)]
    assert [group.seed(0), group.seed(1)] == seeds and seeds[0] != seeds[1]
    assert all(0 <= seed < 2**31 for seed in seeds)
    other = register(tmp_path, RECIPE, 2, signer)
    assert other.id != group.id and other.document["challenge"]["source"] == "own"


def test_what_is_no_registration_is_said(tmp_path: Path) -> None:
    with pytest.raises(PrerequisiteError, match="cannot be read"):
        open_group(tmp_path, "0123456789abcdef")
    (tmp_path / "r.json").write_text("{}")
    with pytest.raises(KitError, match="not a valid registration"):
        open_group(tmp_path, str(tmp_path / "r.json"))
    assert registration_problem({**tamper.registration(), "runs": 9}) is not None


def test_the_commands_open_a_group_and_refuse_what_does_not_belong(tmp_path: Path) -> None:
    done = call("register", "-r", "smoke", "--runs", "3", "--work", tmp_path)
    assert done.exit_code == 0, done.output
    name = done.stdout.strip().splitlines()[-1]
    assert (tmp_path / "groups" / name / "registration.json").exists()
    assert call("register", "-r", "smoke", "--runs", "0", "--work", tmp_path).exit_code == 2
    short = call("register", "-r", "smoke", "--runs", "3", "--challenge", "x", "--work", tmp_path)
    assert isinstance(short.exception, PrerequisiteError)


def test_a_whole_group_is_verified_together(tmp_path: Path) -> None:
    paths = [
        tamper.enrol(tamper.gpu_run(seed=60 + index, steps=24), index).write(tmp_path / str(index))
        for index in range(3)
    ]
    alone = verify_result(paths[0])
    assert alone.exit_code == 0 and alone.status("V20") == "skip"
    report = verify_result(paths[0], Options(group=tuple(paths)))
    assert report.verdict == "consistent", report.refused_by
    assert "all 3 registered runs" in report.of("V20")[0].message


def test_cost_is_energy_times_the_stated_price(tmp_path: Path) -> None:
    draft = tamper.gpu_run(steps=24)
    draft.header()["price"] = {"per_kwh": 0.4, "currency": "EUR"}
    report = verify_result(draft.write(tmp_path / "run"))
    assert report.verdict == "consistent", report.refused_by
    log = RunLog.read(tmp_path / "run")
    energy = energy_section(log)
    assert energy.kwh is not None
    assert energy.cost == pytest.approx(energy.kwh * 0.4, abs=1e-4)
    assert energy.currency == "EUR" and runs_section(log).group is None


def test_a_challenge_shows_that_no_seed_was_tried_only_where_the_board_wrote_it(
    tmp_path: Path,
) -> None:
    from kit.trust.board_record import EVENTS_KIND, BoardRecord
    from kit.trust.chain_writer import ChainWriter

    board, dates = tmp_path / "board", ("2026-08-01T00:00:00Z", "2026-08-09T00:00:00Z")
    board.mkdir()
    heads = []
    with ChainWriter(board / "board-events.jsonl", EVENTS_KIND) as writer:
        for at in dates:
            writer.append({"ev": "board", "at": at})
            heads.append(writer.head)
    record = BoardRecord(board)
    assert [record.written_at(head) for head in heads] == list(dates)
    assert record.written_at("typed by hand") is None

    def told(value: str, source: str = "given", registered: str = "2026-09-01T12:00:00Z") -> str:
        document = tamper.registration(
            challenge={"value": value, "source": source}, registered_at=registered
        )
        draft = tamper.enrol(tamper.gpu_run(steps=24), 0, document)
        path = draft.write(tmp_path / f"{value[-8:]}-{source}-{registered[:10]}")
        report = verify_result(path, Options(board=record))
        return f"{report.status('V19')}: {report.of('V19')[0].message}"

    assert told(heads[0]).startswith("pass: the challenge is what this board")
    assert told(heads[1]).startswith("pass: the challenge is what this board")
    assert told("typed by hand").startswith("warn: the challenge is not from this board")
    assert told(heads[0], "own").startswith("warn: the challenge was drawn by who registered")
    early = told(heads[1], registered="2026-08-05T00:00:00Z")
    assert early.startswith("fail: the group was registered before its challenge existed")


def test_register_takes_the_end_of_a_boards_log_as_the_challenge(tmp_path: Path) -> None:
    from kit.board.load import load_board

    board = tamper.ASSETS.parents[1] / "submissions"
    done = call("register", "-r", "smoke", "--runs", "2", "--work", tmp_path, "--board", board)
    assert done.exit_code == 0, done.output
    document = open_group(tmp_path, done.stdout.strip().splitlines()[-1]).document
    assert document["challenge"] == {"value": load_board(board).head, "source": "given"}
    empty = call("register", "-r", "smoke", "--runs", "2", "--work", tmp_path, "--board", tmp_path)
    assert isinstance(empty.exception, PrerequisiteError)
    both = ("--board", board, "--challenge", "a beacon's text")
    assert call("register", "-r", "smoke", "--runs", "2", *both).exit_code == 2


@pytest.mark.slow
def test_a_registered_run_with_a_price_through_the_supervisor(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    work = tmp_path / "work"
    (tmp_path / "bigram.toml").write_text(tamper.CPU_RECIPE)
    shutil.copy(tamper.ASSETS / "bigram_trainer.py", tmp_path)
    recipe = load_recipe(str(tmp_path / "bigram.toml"))
    group = register(work, recipe, 2, load_or_create_signer(work / "keys"), "what the board drew")
    options = ("--group", group.id, "--price-kwh", "0.25")
    run = tamper.supervised_run(tmp_path, options=options)
    result = json.loads((run / "result.json").read_text())
    assert result["runs"] == {"id": run.name, "group": group.id, "index": 0}
    assert result["seed"] == {"value": group.seed(0), "source": "challenge"}
    assert result["energy"]["price_per_kwh"] == 0.25
    report = verify_result(run)
    assert report.verdict == "consistent", report.to_json()
    assert verify_result(run, Options(group=(run,))).refused_by == ["V20"]
