"""Publishing on the Hub: pull requests judged, pending rows, merges, refusals; git as witness."""

import json
import shutil
from pathlib import Path
from typing import Any

import board_runs
import pytest
from board_hub import BOARD, TOKENS, git
from board_hub import hub as hub
from click.testing import CliRunner
from git_hub import Fault, GitHub

from kit.board import hub_publish
from kit.cli.main import cli

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return board_runs.gpu_run(tmp_path_factory.mktemp("alice") / "run", "alice")


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a command as somebody; gives its JSON."""

    def run_as(who: str, *arguments: object) -> dict[str, Any]:
        monkeypatch.setenv("HF_TOKEN", TOKENS[who])
        words = [*map(str, arguments), "--board", BOARD, "--json"]
        words += ["--work", str(tmp_path / "work")] if "publish" in words else ["--yes"]
        done = CliRunner().invoke(cli, words)
        assert done.exit_code == 0, (done.output, repr(done.exception))
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    return run_as


def rows(hub: GitHub) -> list[dict[str, Any]]:
    text = hub.content("datasets", BOARD, "main", "submissions/leaderboard.jsonl").decode()
    return [json.loads(line) for line in text.splitlines()]


def comments(hub: GitHub, number: int = 1) -> list[str]:
    events = hub.discussions[BOARD][number - 1]["events"]
    return [e["data"]["latest"]["raw"] for e in events if e["type"] == "comment"]


def test_an_open_pull_request_is_a_pending_row_and_a_merged_one_is_listed(
    hub: GitHub, run: Path, command: Any
) -> None:
    command("alice", "submit", run)
    first = command("n4090", "board", "publish")
    assert [one["accepted"] for one in first["submissions"]] == [True]
    (row,) = rows(hub)
    assert (row["state"], row["tier"], row["rank"]) == ("pending", "T1", None)
    assert row["checks"]["V21"] == "skip"
    (said,) = comments(hub)
    assert said.startswith("Accepted: consistent") and "| V04 | pass |" in said
    commits = git(hub.path("datasets", BOARD), "rev-list", "--count", "main")

    quiet = command("n4090", "board", "publish")
    assert (quiet["events"], quiet["unchanged"], len(comments(hub))) == (0, 1, 1)
    assert git(hub.path("datasets", BOARD), "rev-list", "--count", "main") == commits

    command("n4090", "board", "publish", "--merge")
    git_dir = hub.path("datasets", BOARD)
    assert hub.discussions[BOARD][0]["status"] == "closed"
    (row,) = rows(hub)
    assert (row["state"], row["tier"], row["rank"]) == ("listed", "T1", None)
    quiet = command("n4090", "board", "publish")
    assert (quiet["events"], quiet["unchanged"], len(quiet["submissions"])) == (0, 1, 0)
    assert rows(hub) == [row]
    git(git_dir, "fsck", "--strict", "--no-dangling")
    chain = git(git_dir, "show", "main:submissions/board-events.jsonl").splitlines()
    events = [json.loads(line) for line in chain]
    states = [(e["data"]["from"], e["data"]["to"]) for e in events if e["ev"] == "state"]
    assert states == [(None, "pending"), ("pending", "listed")]
    sources = [e["data"]["source"] for e in events if e["ev"] == "submission"]
    assert sources[-1]["kind"] == "merged" and sources[-1]["author"] == "alice"
    assert [e["ev"] for e in events].count("anchor") == 2


def test_a_head_that_moves_after_it_was_judged_is_not_taken_in(
    hub: GitHub, run: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    command("alice", "submit", run)
    board, ref = hub.path("datasets", BOARD), "refs/pr/1"
    (readme,) = [
        p for p in git(board, "ls-tree", "-r", "--name-only", ref).split() if "README" in p
    ]
    judge = hub_publish.publish

    def judge_then_move(*arguments: Any, **options: Any) -> Any:
        done = judge(*arguments, **options)
        if done.new:
            head = git(board, "rev-parse", ref).strip()
            hub.write(board, ref, head, {readme: b"moved"}, "after it was judged")
        return done

    with monkeypatch.context() as patched:
        patched.setattr(hub_publish, "publish", judge_then_move)
        command("n4090", "board", "publish", "--merge")
    assert [row["state"] for row in rows(hub)] == ["pending"]
    assert hub.discussions[BOARD][0]["status"] == "open"
    command("n4090", "board", "publish", "--merge")
    assert hub.discussions[BOARD][0]["status"] == "closed"
    assert hub.content("datasets", BOARD, "main", readme) == b"moved"


def test_a_pass_that_ends_before_closing_is_finished_by_the_next(
    hub: GitHub, run: Path, command: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    command("alice", "submit", run)
    hub.faults = [Fault("POST /api/datasets/.*/discussions/1/status", status=403)]
    monkeypatch.setenv("HF_TOKEN", TOKENS["n4090"])
    words = ["board", "publish", "--merge", "--board", BOARD, "--work", str(tmp_path / "work")]
    assert CliRunner().invoke(cli, words).exit_code != 0
    assert hub.discussions[BOARD][0]["status"] == "open"
    assert [row["state"] for row in rows(hub)] == ["listed"]
    command("n4090", "board", "publish")
    assert hub.discussions[BOARD][0]["status"] == "closed"
    assert not any("Not accepted" in text for text in comments(hub))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ({"revision": None}, "not pinned to a commit"),
        ({"revision": "0" * 40}, "not there for everybody"),
        ({"repository": "alice/gone"}, "not there for everybody"),
    ],
)
def test_weights_without_a_commit_or_a_repository_are_refused(
    hub: GitHub, run: Path, command: Any, model: dict[str, Any], reason: str
) -> None:
    command("alice", "submit", run)
    board, ref = hub.path("datasets", BOARD), "refs/pr/1"
    (pin,) = [
        p for p in git(board, "ls-tree", "-r", "--name-only", ref).split() if "submission.js" in p
    ]
    document = json.loads(git(board, "show", f"{ref}:{pin}"))
    document["model"] |= model
    head = git(board, "rev-parse", ref).strip()
    hub.write(board, ref, head, {pin: json.dumps(document).encode()}, "no commit")
    (judged,) = command("n4090", "board", "publish")["submissions"]
    assert not judged["accepted"] and reason in judged["reason"], judged["reason"]


def test_a_chain_that_lost_its_last_lines_is_noticed(
    hub: GitHub, run: Path, command: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    command("alice", "submit", run)
    command("n4090", "board", "publish")
    repo, name = hub.path("datasets", BOARD), "submissions/board-events.jsonl"
    lines = hub.content("datasets", BOARD, "main", name).splitlines(keepends=True)
    head = git(repo, "rev-parse", "main").strip()
    hub.write(repo, "refs/heads/main", head, {name: b"".join(lines[:2])}, "drop the tail")
    monkeypatch.setenv("HF_TOKEN", TOKENS["n4090"])
    words = ["board", "publish", "--board", BOARD, "--work", str(tmp_path / "work")]
    done = CliRunner().invoke(cli, words)
    assert "does not continue the chain that was seen" in str(done.exception)


def test_swapped_weights_are_refused_without_fetching_them(
    hub: GitHub, run: Path, command: Any
) -> None:
    model = command("alice", "submit", run)["model"]
    repository, _, commit = model.partition("@")
    repo = hub.path("models", repository)
    pointer = git(repo, "show", f"{commit}:checkpoints/sft/model.safetensors")
    other = pointer.replace(pointer[54:58], "beef").encode()
    swapped = hub.write(
        repo, "refs/heads/main", commit, {"checkpoints/sft/model.safetensors": other}, "swap"
    )
    board = hub.path("datasets", BOARD)
    ref = "refs/pr/1"
    (pin,) = [
        p for p in git(board, "ls-tree", "-r", "--name-only", ref).split() if "submission.js" in p
    ]
    text = git(board, "show", f"{ref}:{pin}").replace(commit, swapped)
    hub.write(board, ref, git(board, "rev-parse", ref).strip(), {pin: text.encode()}, "repin")
    before = len(hub.requests)
    (judged,) = command("n4090", "board", "publish")["submissions"]
    assert not judged["accepted"] and judged["checks"]["V21"] == "fail"
    assert "not the signed file" in judged["reason"]
    assert not any("safetensors" in asked for asked in hub.requests[before:] if "GET" in asked)
    assert comments(hub)[0].startswith("Not accepted: refused by V21")


def test_code_beside_the_weights_that_is_not_ours_is_named(hub: GitHub, run: Path) -> None:
    from kit.board.hub import Hub, client
    from kit.board.model_code import OWN_CODE, foreign_code
    from kit.trust.digest import sha256_bytes

    ours = (ROOT / "reference" / "export" / "modeling_n4090.py").read_bytes()
    assert sha256_bytes(ours) in OWN_CODE, "add the new version's digest"
    repo = hub.create("models", "alice/model", {"hf/modeling_n4090.py": ours, "hf/a.json": b"{}"})
    asked = Hub(client())
    assert foreign_code(asked, "alice/model", "main") == []
    other = {"hf/modeling_n4090.py": ours + b"import os\n", "extra/Weights.PKL": b"x"}
    hub.write(repo, "refs/heads/main", hub.resolve(repo, "main"), other, "another's code")
    found = foreign_code(asked, "alice/model", "main")
    assert [finding.place for finding in found] == ["extra/Weights.PKL", "hf/modeling_n4090.py"]
    assert {finding.status for finding in found} == {"warn"}


def test_telemetry_too_large_for_the_board_is_read_beside_the_weights(
    hub: GitHub, run: Path, command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kit.board import layout
    from kit.board.package import pack
    from kit.board.publish import publish
    from kit.board.submit import submit_to_folder

    monkeypatch.setitem(layout.TEXT_LIMITS, "telemetry.jsonl", 1000)
    command("alice", "submit", run)
    assert "telemetry" not in git(
        hub.path("datasets", BOARD), "diff", "--name-only", "main", "refs/pr/1"
    )
    (judged,) = command("n4090", "board", "publish")["submissions"]
    assert judged["accepted"] and judged["checks"]["V15"] == "pass"
    assert rows(hub)[0]["tier"] == "T1"

    folder = tmp_path / "folder"
    folder.mkdir()
    submit_to_folder(folder, pack(run, "alice", board=str(folder)))
    (found,) = publish(folder).new
    assert found.accepted and found.checks["V15"] == "pass"


FOREIGN = {
    "another's folder": "submissions/2026/bob/{id}/result.json",
    "the events": "submissions/board-events.jsonl",
    "the workflow": ".github/workflows/run.yml",
    "a script": "submissions/2026/alice/{id}/run.py",
    "a name without end": "submissions/2026/alice/" + "x" * 200,
    "a statement in another's name": "submissions/statements/{id}/bob-0123456789abcdef.json",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_pull_request_that_touches_anything_else_is_refused_unread(
    hub: GitHub, run: Path, command: Any, name: str, tmp_path: Path
) -> None:
    command("alice", "submit", run)
    board, ref = hub.path("datasets", BOARD), "refs/pr/1"
    (result,) = [
        p for p in git(board, "ls-tree", "-r", "--name-only", ref).split() if "result.js" in p
    ]
    path = FOREIGN[name].format(id=result.split("/")[3])
    hub.write(board, ref, git(board, "rev-parse", ref).strip(), {path: b"{}"}, "more")
    before = len(hub.requests)
    done = command("n4090", "board", "publish")
    assert done["submissions"] == [] and rows(hub) == []
    assert comments(hub)[0].startswith("Not accepted: it ")
    assert not any("/resolve/" in asked and "/alice/" in asked for asked in hub.requests[before:])
    command("n4090", "board", "publish")
    assert len(comments(hub)) == 1


def test_publishing_goes_on_after_a_bad_line_and_tells_each_author_once(
    hub: GitHub, run: Path, command: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    command("alice", "submit", run)
    hub.faults = [
        Fault("GET /datasets/.*resolve", cut_request=0),
        Fault("GET /api/datasets/.*/tree", status=503),
        Fault("POST /api/datasets/.*/commit/main", lose_reply=True),
    ]
    command("n4090", "board", "publish")
    assert all(fault.times == 0 for fault in hub.faults)
    assert len(rows(hub)) == 1 and len(comments(hub)) == 1


def test_another_machine_continues_the_same_events(
    hub: GitHub, run: Path, command: Any, tmp_path: Path
) -> None:
    command("alice", "submit", run)
    command("n4090", "board", "publish")
    shutil.rmtree(tmp_path / "work")
    again = command("n4090", "board", "publish")
    assert again["events"] == 0
    head = hub.content("datasets", BOARD, "main", "submissions/board-events.jsonl")
    assert head.count(b"\n") == 5


def test_a_board_that_moved_on_is_not_overwritten(
    hub: GitHub, run: Path, command: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    command("alice", "submit", run)
    hub.faults = [Fault("POST /api/datasets/.*/commit/main", status=412)]
    monkeypatch.setenv("HF_TOKEN", TOKENS["n4090"])
    words = ["board", "publish", "--board", BOARD, "--work", str(tmp_path / "work")]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code != 0
    assert "moved on" in done.exception.hint  # type: ignore[union-attr]
    command("n4090", "board", "publish")
    assert len(rows(hub)) == 1


def test_what_a_cut_diff_hides_is_not_merged(
    hub: GitHub, run: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host may cut a long diff: merging looks at the whole tree."""
    import git_hub

    command("alice", "submit", run)
    board, ref = hub.path("datasets", BOARD), "refs/pr/1"
    hub.write(board, ref, git(board, "rev-parse", ref).strip(), {"zzz.py": b"1"}, "hidden")
    whole = git_hub.GitHub.git

    def cut(self: GitHub, repo: Path, *arguments: str, **more: Any) -> bytes:
        data = whole(self, repo, *arguments, **more)
        return data[: data.index(b"diff --git a/zzz.py")] if arguments[0] == "diff" else data

    monkeypatch.setattr(git_hub.GitHub, "git", cut)
    command("n4090", "board", "publish", "--merge")
    assert [row["state"] for row in rows(hub)] == ["pending"]
    assert hub.discussions[BOARD][0]["status"] == "open"


def test_a_reproduction_and_a_dispute_arrive_as_pull_requests_of_their_own(
    hub: GitHub, run: Path, command: Any, tmp_path: Path
) -> None:
    command("alice", "submit", run)
    command("n4090", "board", "publish", "--merge")
    again = board_runs.gpu_run(tmp_path / "bob", "bob", seed=12, bpb=0.8413)
    statement = board_runs.reproduction(run, again, "bob")
    (again / "reproduction.json").write_text(json.dumps(statement))
    assert command("bob", "submit", again)["state"] == "opened"
    command("n4090", "board", "publish")
    (row, own) = rows(hub)
    # Not T4: nobody scored weights here, and the Hub shows no account of bob's.
    assert (row["tier"], row["pooled"]["n"], own["state"]) == ("T1", 1, "pending")
    assert "Accepted: reproductions" in comments(hub, 2)[0]

    check = board_runs.reproduction(run, None, "bob")
    path = tmp_path / "check.json"
    path.write_text(json.dumps(check))
    assert command("bob", "submit", path)["state"] == "opened"
    assert command("bob", "submit", path)["state"] == "open already"
    words = ["board", "dispute", row["id"], "--board", BOARD, "--reason", "odd", "--yes"]
    words += ["--work", str(tmp_path / "bobs")]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.output
    command("n4090", "board", "publish", "--merge")
    command("n4090", "board", "publish")
    (row, _) = rows(hub)
    assert {one["kind"] for one in row["reproductions"]} == {"run", "check"}
    assert [one["kind"] for one in row["statements"]] == ["dispute"]
    assert {one["status"] for one in hub.discussions[BOARD]} == {"closed"}
    git(hub.path("datasets", BOARD), "fsck", "--strict", "--no-dangling")
