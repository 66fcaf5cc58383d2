"""Tiers are earned by evidence that the board holds itself; copies and forgeries gain nothing."""

import json
import shutil
from pathlib import Path
from typing import Any

import board_runs
import pytest
from test_board_publish import add, edit_json, last_reason, published, root, runs, say

from kit.board.documents import relative_path
from kit.board.inspect import BoardIndex, inspect
from kit.board.layout import Layout, SubmissionPath
from kit.board.load import load_board
from kit.board.package import document_items
from kit.board.publish import publish
from kit.board.sample import compare_answers, draw_items
from kit.board.submit import place
from kit.errors import PrerequisiteError
from kit.trust.keys import read_revoked, revoke

__all__ = ["root", "runs"]  # fixtures
Runs = dict[str, Path]


# --- the board scores weights itself -------------------------------------------------------------


def test_weights_that_answer_otherwise_make_a_row_disputed(root: Path, runs: Runs) -> None:
    alice = add(root, runs["alice"], "alice")
    scorer = board_runs.AnswersScorer(root, turned=(alice,))
    row = published(root, scorer=scorer).row(alice)
    assert (row["tier"], row["state"], row["rank"]) == ("T1", "disputed", None)
    assert "board's own scoring" in " ".join(row["why_not_ranked"])


def test_weights_that_cannot_be_scored_stay_self_reported_and_are_not_tried_again(
    root: Path, runs: Runs
) -> None:
    alice = add(root, runs["alice"], "alice")
    scorer = board_runs.AnswersScorer(root, broken=(alice,))
    for _ in range(2):
        board = published(root, scorer=scorer)
    row = board.row(alice)
    assert (row["tier"], row["rank"], row["state"]) == ("T1", None, "listed")
    assert "of another shape" in row["tier_reason"]
    assert [event["ev"] for event in board.events_of(alice)].count("draw") == 1


def test_each_scoring_draws_other_questions_after_the_submission(root: Path, runs: Runs) -> None:
    alice = add(root, runs["alice"], "alice")
    published(root)
    publish(root, scorer=board_runs.AnswersScorer(root), rescore=alice)
    events = [event["ev"] for event in load_board(root).events_of(alice)]
    assert events.index("submission") < events.index("draw") < events.index("score")
    scores = [e["data"] for e in load_board(root).events_of(alice) if e["ev"] == "score"]
    assert len({one["draw"] for one in scores}) == 2
    assert scores[0]["outcomes"] != scores[1]["outcomes"]
    published(root)  # the table rebuilds


def test_a_changed_submission_is_scored_again(root: Path, runs: Runs) -> None:
    alice = add(root, runs["alice"], "alice")
    assert published(root).row(alice)["tier"] == "T2"
    (root / "2026/alice" / alice / "README.md").write_text("another text")
    assert published(root, scorer=None).row(alice)["tier"] == "T1"
    assert published(root).row(alice)["tier"] == "T2"


def test_a_draw_is_even_over_tasks_and_the_same_everywhere() -> None:
    counts = {"small": 3, "middle": 40, "large": 10_000}
    drawn = draw_items("seed", counts, 63)
    assert {task: len(places) for task, places in drawn.items()} == {
        "small": 3,
        "middle": 30,
        "large": 30,
    }
    assert drawn == draw_items("seed", counts, 63) != draw_items("seed2", counts, 63)
    assert all(places == sorted(set(places)) for places in drawn.values())
    assert drawn["small"] == [0, 1, 2] and max(drawn["large"]) < 10_000
    assert sum(map(len, draw_items("s", counts, 10**6).values())) == 10_043


def test_precision_turns_a_few_answers_and_an_invented_score_more() -> None:
    counts = {f"t{n}": 500 for n in range(20)}
    stated = {task: "01" * 250 for task in counts}
    drawn = draw_items("x", counts, 1000)
    baselines = dict.fromkeys(counts, 25.0)
    found = {task: "".join(stated[task][p] for p in places) for task, places in drawn.items()}
    assert compare_answers(stated, found, drawn, baselines).agrees
    few = {**found, "t0": "".join("10"[int(c)] for c in found["t0"][:4]) + found["t0"][4:]}
    assert compare_answers(stated, few, drawn, baselines).agrees
    # Two answers of a hundred claimed right that the weights get wrong: CORE + 0.027.
    invented = {task: text.replace("1", "0", 1) for task, text in found.items()}
    told = compare_answers(stated, invented, drawn, baselines)
    assert not told.agrees and told.difference == pytest.approx(1 / 50 / 0.75)


# --- accounts, not keys --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accounts", "reason"),
    [
        ([], "showed the board an account with its key"),
        ([board_runs.account("carol")], "showed the board an account with its key"),
        ([board_runs.account("bob", created="2026-09-20T00:00:00Z")], "younger than 90 days"),
        ([board_runs.account("bob", user="bobby")], "no account called bob"),
        (
            [board_runs.account("bob"), board_runs.account("bob", user="Alice")],
            "its account is the submitter's",
        ),
        (
            [board_runs.account("bob", keys=[board_runs.signer_of(n).public_key for n in "ab"])],
            "showed the board an account with its key",
        ),
    ],
)
def test_a_reproduction_counts_for_an_account_that_is_old_enough_and_another_persons(
    root: Path, runs: Runs, accounts: list[Any], reason: str
) -> None:
    alice = add(root, runs["alice"], "alice")
    document = board_runs.reproduction(runs["alice"], runs["bob"], "bob")
    add(root, runs["bob"], "bob", [document])
    board = published(root, accounts=accounts)
    assert board.row(alice)["tier"] == "T2"
    assert reason in last_reason(board, relative_path(document))
    # The key that the submitter's account shows stays the submitter's, whoever shows it too.
    tier = "T2" if "submitter's" in reason else "T4"
    assert published(root, accounts=[board_runs.account("bob")]).row(alice)["tier"] == tier


def test_a_reproduction_with_weights_that_the_board_did_not_score_counts_nothing(
    root: Path, runs: Runs
) -> None:
    alice = add(root, runs["alice"], "alice")
    document = board_runs.reproduction(runs["alice"], runs["bob"], "bob")
    bob = add(root, runs["bob"], "bob", [document])
    board = published(root, scorer=board_runs.AnswersScorer(root, broken=(bob,)))
    assert board.row(alice)["tier"] == "T2"
    assert "has not scored the weights of its own run" in last_reason(
        board, relative_path(document)
    )


def test_invented_statements_neither_raise_a_row_nor_take_it_down(root: Path, runs: Runs) -> None:
    alice = add(root, runs["alice"], "alice")
    for who in ("eve1", "eve2", "eve3"):
        for kind in ("check", "replay"):
            for verdict in ("confirmed", "worse"):
                found = {**board_runs.figures(runs["alice"]), "score": 0.1, "val_bpb": 9.0}
                document = board_runs.reproduction(
                    runs["alice"], None, who, kind=kind, verdict=verdict, found=found
                )
                place(root, document_items([document]))
        say(root, "dispute", alice, who)
    row = published(root).row(alice)
    assert (row["tier"], row["state"], row["rank"]) == ("T2", "listed", 1)


def test_a_replay_counts_when_its_losses_are_those_of_the_log(root: Path, runs: Runs) -> None:
    alice = add(root, runs["alice"], "alice")
    events = map(json.loads, (runs["alice"] / "events.jsonl").read_text().splitlines())
    losses = [e["data"]["loss"] for e in events if e["ev"] == "step"][:5]
    for number, changed in enumerate(([9.0] * 5, losses)):
        evidence = {"windows": [{"first": 0, "losses": changed}]}
        document = board_runs.reproduction(
            runs["alice"], None, "bob", kind="replay", evidence=evidence, notes=[str(number)]
        )
        place(root, document_items([document]))
        board = published(root)
        assert board.row(alice)["tier"] == ("T2", "T3")[number]
        told = last_reason(board, relative_path(document))
        assert ("worse", "confirmed")[number] in told


# --- whose run it is ----------------------------------------------------------------------------


def test_a_copied_run_credits_nobody_and_its_owner_takes_it_back(root: Path, runs: Runs) -> None:
    alice = add(root, runs["alice"], "alice")
    own = root / "2026/alice" / alice
    copied = root / "2026/mallory" / alice
    shutil.copytree(own, copied)
    edit_json(copied / "submission.json", submitter="mallory", model=None)
    shutil.move(own, root.parent / "kept")
    row = published(root).row(alice)
    assert row["submitter"] == "mallory" and row["rank"] is None
    assert any("does not name its submitter" in why for why in row["why_not_ranked"])
    shutil.move(root.parent / "kept", own)
    row = published(root).row(alice)
    assert (row["submitter"], row["rank"]) == ("alice", 1)


def test_an_unsigned_copy_does_not_bind_the_owners_key(
    root: Path, runs: Runs, tmp_path: Path
) -> None:
    alice = add(root, runs["alice"], "alice")
    own = root / "2026/alice" / alice
    shutil.copytree(own, root / "2026/mallory" / alice)
    shutil.rmtree(own)
    edit_json(root / "2026/mallory" / alice / "submission.json", submitter="mallory", model=None)
    published(root)
    second = board_runs.gpu_run(tmp_path / "second", "alice", seed=77, days=3)
    later = add(root, second, "alice")
    assert published(root).row(later)["submitter"] == "alice"


@pytest.mark.parametrize("spelled", ["Bob", "BOB"])
def test_names_that_differ_by_case_are_one_person(root: Path, runs: Runs, spelled: str) -> None:
    add(root, runs["bob"], "bob")
    published(root)
    package = add(root, runs["carol"], spelled)
    board = published(root)
    assert "spelled so" in last_reason(board, f"2026/{spelled}/{package}")
    alice = add(root, runs["alice"], "alice")
    document = board_runs.reproduction(
        runs["alice"], runs["bob"], "bob", by={**_by("bob"), "name": "ALICE"}
    )
    place(root, document_items([document]))
    board = published(root)
    assert "own submitter" in last_reason(board, relative_path(document))
    assert board.row(alice)["tier"] == "T2"


def _by(who: str) -> dict[str, str]:
    return {"name": who, "public_key": board_runs.signer_of(who).public_key}


def test_one_card_cannot_run_twice_at_a_time(root: Path, runs: Runs, tmp_path: Path) -> None:
    add(root, runs["alice"], "alice")
    published(root)
    twice = board_runs.gpu_run(tmp_path / "twice", "zoe", seed=3, card="card of alice")
    later = board_runs.gpu_run(tmp_path / "later", "xia", seed=5, card="card of alice", days=1)
    ids = {who: add(root, path, who) for who, path in (("zoe", twice), ("xia", later))}
    board = published(root)
    assert "same card was running" in last_reason(board, f"2026/zoe/{ids['zoe']}")
    assert [row["submitter"] for row in board.rows if row["submitter"] in ids] == ["xia"]


def test_a_run_that_ends_after_its_submission_is_refused(root: Path, runs: Runs) -> None:
    row_id = add(root, runs["alice"], "alice")
    path = SubmissionPath("2026", "alice", row_id)
    for now_s, accepted in ((1e9, False), (1e10, True)):
        found = inspect(Layout(root), path, BoardIndex(), now_s=now_s)
        assert found.accepted is accepted
        assert accepted or "ends in the future" in found.reason


def test_a_result_that_names_another_account_is_not_its_authors(
    root: Path, runs: Runs, tmp_path: Path
) -> None:
    def named(draft: Any) -> None:
        seen = {"user": "Alice", "fetched_at": "2026-09-01T00:00:00Z"}
        draft.header()["signer"]["identities"] = {"hf": seen}

    run = board_runs.gpu_run(tmp_path / "named", "alice", seed=21, changes=named)
    for who, accepted in (("mallory", False), ("alice", True)):
        row_id = add(root, run, who)
        path = SubmissionPath("2026", who, row_id)
        assert inspect(Layout(root), path, BoardIndex(), author=who).accepted is accepted


# --- revoked keys -------------------------------------------------------------------------------


def test_a_list_of_revoked_keys_with_stray_lines_still_revokes(
    root: Path, runs: Runs, tmp_path: Path
) -> None:
    bob = add(root, runs["bob"], "bob")
    alice = add(root, runs["alice"], "alice")
    published(root)
    path = revoke(root, board_runs.signer_of("alice").public_key, "lost")
    text = path.read_text()
    path.write_bytes(
        b"\xef\xbb\xbf" + b"  # a comment\nssh-rsa nonsense\n\r\n" + text.encode() + b"tail\n"
    )
    assert read_revoked(path).keys == {board_runs.signer_of("alice").public_key}
    assert [problem.split(" revokes")[0] for problem in read_revoked(path).problems] == [
        "revoked_keys, line 2",
        "revoked_keys, line 6",
    ]
    told: list[str] = []
    board = published(root, tell=told.append)
    assert [row["id"] for row in board.rows] == [bob]
    assert "revoked" in last_reason(board, f"2026/alice/{alice}")
    assert sum("revokes nothing" in text for text in told) == 2


def test_an_account_without_an_age_is_not_vouched_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from kit.trust import identities

    answers = {"keys.pub": board_runs.signer_of("bob").public_key.encode(), "overview": b"{}"}
    monkeypatch.setattr(
        identities, "_get", lambda service, path, hint: answers[path.rpartition("/")[2]]
    )
    account = identities.Account("hf", "bob")
    with pytest.raises(PrerequisiteError, match="does not tell when"):
        identities.fetch_account(account)
    answers["overview"] = b'{"createdAt": "2020-03-01T10:00:00.000Z"}'
    assert identities.fetch_account(account) == board_runs.account(
        "bob", created="2020-03-01T10:00:00Z"
    )
