"""Submitting: into a folder, and with the real Hub client into real git repositories."""

import io
import json
from pathlib import Path
from typing import Any

import board_runs
import pytest
from board_hub import BOARD, SETTINGS, TOKENS, git
from board_hub import hub as hub
from click.testing import CliRunner, Result
from git_hub import Fault, GitHub

from kit.cli.main import cli

# huggingface_hub 2.4 hands a file to httpx2 under its old argument's name.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
TOKEN = TOKENS["alice"]


def n4090(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return board_runs.gpu_run(tmp_path_factory.mktemp("alice") / "run", "alice")


def submit(run: Path, *more: object) -> dict[str, Any]:
    done = n4090("submit", run, "--board", BOARD, "--yes", "--json", *more)
    assert done.exit_code == 0, (done.output, done.exception)
    outcome: dict[str, Any] = json.loads(done.stdout)
    return outcome


def assert_sound(hub: GitHub, run: Path) -> str:
    """What git itself says of both repositories; returns the model's commit."""
    name = board_runs.result_of(run)
    from kit.trust.sign import result_id

    row = result_id(name)
    model, board = hub.path("models", f"alice/n4090-d20-{row}"), hub.path("datasets", BOARD)
    for repo in (model, board):
        git(repo, "fsck", "--strict", "--no-dangling")
    commit = git(model, "rev-parse", f"n4090-{row}").strip()
    assert git(model, "rev-parse", "main~1").strip() == commit
    assert git(model, "diff", "--name-only", commit, "main").split() == [".eval_results/core.yaml"]
    for path in ("checkpoints/pretrain/model.safetensors", "checkpoints/sft/model.safetensors"):
        stored = hub.content("models", f"alice/n4090-d20-{row}", commit, path)
        assert stored == (run / path).read_bytes()
        assert "git-lfs" in git(model, "show", f"{commit}:{path}")
    assert git(model, "show", f"{commit}:result.json") == (run / "result.json").read_text()
    folder = f"submissions/2026/alice/{row}"
    pin = json.loads(git(board, "show", f"refs/pr/1:{folder}/submission.json"))
    assert pin["model"] == {"repository": f"alice/n4090-d20-{row}", "revision": commit}
    changed = git(board, "diff", "--name-only", "main", "refs/pr/1").split()
    assert changed and all(path.startswith(folder + "/") for path in changed)
    assert "refs/pr/2" not in git(board, "for-each-ref")
    return commit


def test_a_result_reaches_the_model_repository_and_one_pull_request(hub: GitHub, run: Path) -> None:
    outcome = submit(run)
    assert outcome["state"] == "opened"
    commit = assert_sound(hub, run)
    assert outcome["model"].endswith(f"@{commit}")
    again = submit(run)
    assert again["state"] == "open already"
    assert again["model"] == outcome["model"]
    assert assert_sound(hub, run) == commit
    for file in (*hub.root.rglob("*"), *run.rglob("*")):
        assert not file.is_file() or TOKEN.encode() not in file.read_bytes()


def test_nobody_watches_over_the_bars_of_an_upload(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.utils import tqdm

    from kit.board.hub import client

    monkeypatch.setattr(tqdm, "monitor_interval", 10)
    monkeypatch.setattr(tqdm, "monitor", None)
    client()
    with tqdm(total=1, disable=False, file=io.StringIO()):
        assert tqdm.monitor is None


def test_the_published_model_verifies_as_it_is_downloaded(
    hub: GitHub, run: Path, tmp_path: Path
) -> None:
    from huggingface_hub import ModelCard, parse_eval_result_entries, snapshot_download

    from kit.verify import verify_result

    repository, _, commit = submit(run)["model"].partition("@")
    local = tmp_path / "model"
    snapshot_download(repository, revision=commit, local_dir=local, endpoint=hub.url)
    report = verify_result(local)
    assert report.verdict == "consistent"
    assert report.status("V21") == "pass"
    card = ModelCard((local / "README.md").read_text())
    assert card.data.eval_results
    assert {one.metric_name for one in card.data.eval_results} >= {"CORE", "bits per byte"}
    scores = hub.content("models", repository, "main", ".eval_results/core.yaml")
    [entry] = parse_eval_result_entries(json.loads(scores))
    assert entry.task_id == "core" and entry.dataset_revision
    assert entry.source_url == f"{hub.url}/{repository}/blob/{commit}/result.json"
    assert "<svg" in (local / "curves.svg").read_text()
    assert "n4090-kit chat" in card.text


FAULTS = {
    "429": Fault("POST .*/commit/", status=429, headers={"Retry-After": "0"}),
    "500": Fault("GET /api/datasets", status=500),
    "503 to the upload": Fault("PUT /lfs", times=7, status=503),
    "login cut": Fault("GET /api/whoami", cut_request=0),
    "upload cut at byte 0": Fault("PUT /lfs", cut_request=0),
    "upload cut in the middle": Fault("PUT /lfs", cut_request=2000),
    "upload cut at its last byte": Fault("PUT /lfs", cut_request=4200),
    "upload arrived, reply lost": Fault("PUT /lfs", lose_reply=True),
    "model commit made, reply lost": Fault("POST /api/models/.*/commit", lose_reply=True),
    "pull request made, reply lost": Fault("POST .*create_pr=1", times=2, lose_reply=True),
    "tag made, reply lost": Fault("POST /api/models/.*/tag", lose_reply=True),
    "slow answers": Fault("GET /api/datasets", slow_s=0.3),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_bad_line_costs_a_wait_and_nothing_twice(hub: GitHub, run: Path, name: str) -> None:
    fault = FAULTS[name]
    fault.times = fault.times or 1
    hub.faults = [fault]
    outcome = submit(run)
    assert fault.times == 0
    assert outcome["state"] in ("opened", "open already")
    assert_sound(hub, run)


@pytest.mark.parametrize(
    "where",
    ["POST /api/repos/create", "PUT /lfs", "POST /api/models/.*/commit", "POST .*create_pr=1"],
)
def test_a_command_that_gave_up_goes_on_where_it_stopped(
    hub: GitHub, run: Path, where: str
) -> None:
    hub.faults = [Fault(where, times=10**6, cut_request=1)]
    given_up = n4090("submit", run, "--board", BOARD, "--yes")
    assert given_up.exit_code != 0
    assert "resumes where it stopped" in given_up.exception.hint  # type: ignore[union-attr]
    hub.faults, before = [], len(hub.requests)
    assert submit(run)["state"] == "opened"
    assert_sound(hub, run)
    sent = [asked for asked in hub.requests[before:] if asked.startswith("PUT /lfs")]
    expected = 0 if "commit" in where or "create_pr" in where else 2
    assert len(sent) == expected


def test_bytes_lost_on_the_way_are_noticed(hub: GitHub, run: Path) -> None:
    hub.faults = [Fault("PUT /lfs", times=100, lose_bytes=7)]
    done = n4090("submit", run, "--board", BOARD, "--yes")
    assert done.exit_code != 0
    assert not hub.discussions.get(BOARD)


def refused(*arguments: object) -> tuple[str, str]:
    done = n4090("submit", *arguments)
    assert done.exit_code != 0, done.output
    error: Any = done.exception
    assert hasattr(error, "message"), repr(error)
    return error.message, error.hint or ""


def test_each_obstacle_is_named_with_its_remedy(
    hub: GitHub, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    message, hint = refused(run, "--board", "n4090/nowhere", "--yes")
    assert "404" in message and "check the name" in hint
    message, hint = refused(run, "--board", BOARD, "--yes", "--repo", "bob/mine")
    assert "not in the account of alice" in message
    hub.roles["alice"] = "read"
    message, hint = refused(run, "--board", BOARD, "--yes")
    assert "only read" in message and "write access" in hint
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    message, hint = refused(run, "--board", BOARD, "--yes")
    assert "401" in message and "hf auth login" in hint and "hf_wrong" not in message
    monkeypatch.delenv("HF_TOKEN")
    message, hint = refused(run, "--board", BOARD, "--yes")
    assert "no access token" in message and "HF_TOKEN" in hint
    assert not hub.discussions.get(BOARD)


def test_a_forbidden_repository_and_a_newer_board_are_refused(hub: GitHub, run: Path) -> None:
    hub.faults = [Fault("POST /api/repos/create", status=403)]
    message, hint = refused(run, "--board", BOARD, "--yes")
    assert "403" in message and "no rights" in hint
    board = hub.path("datasets", BOARD)
    newer = json.dumps({**SETTINGS, "schema_version": 2}).encode()
    main = git(board, "rev-parse", "main").strip()
    hub.write(board, "refs/heads/main", main, {"submissions/board.json": newer}, "newer")
    message, hint = refused(run, "--board", BOARD, "--yes")
    assert "schema version 2" in message and "upgrade" in hint


def test_another_result_under_the_name_is_never_overwritten(hub: GitHub, run: Path) -> None:
    repo = hub.create("models", "alice/mine", {"result.json": b'{"another": 1}\n'})
    before = git(repo, "rev-parse", "main")
    message, hint = refused(run, "--board", BOARD, "--yes", "--repo", "alice/mine")
    assert "taken by another result" in message and "--repo" in hint
    hub.create("models", "alice/weights", {"checkpoints/sft/config.json": b"{}\n"})
    message, hint = refused(run, "--board", BOARD, "--yes", "--repo", "alice/weights")
    assert "holds another" in message
    hub.create("models", "alice/page", {"README.md": b"my own page\n"})
    message, hint = refused(run, "--board", BOARD, "--yes", "--repo", "alice/page")
    assert "holds another `README.md`" in message
    assert git(repo, "rev-parse", "main") == before


def test_weights_that_changed_behind_ones_back_are_not_pinned(hub: GitHub, run: Path) -> None:
    repository, _, commit = submit(run)["model"].partition("@")
    repo = hub.path("models", repository)
    pointer = git(repo, "show", f"{commit}:checkpoints/sft/model.safetensors")
    other = pointer.replace(pointer[60:64], "beef").encode()
    changed = {"checkpoints/sft/model.safetensors": other, "README.md": b"a page of mine\n"}
    hub.write(repo, "refs/heads/main", commit, changed, "swap")
    message, _ = refused(run, "--board", BOARD, "--yes")
    assert "holds another `checkpoints/sft/model.safetensors`" in message
    tip = git(repo, "rev-parse", "main").strip()
    back = {"checkpoints/sft/model.safetensors": pointer.encode()}
    hub.write(repo, "refs/heads/main", tip, back, "put it back")
    assert submit(run)["state"] == "open already"
    assert git(repo, "show", "main:README.md") == "a page of mine\n"


def test_nothing_is_public_before_a_yes(hub: GitHub, run: Path) -> None:
    done = CliRunner().invoke(cli, ["submit", str(run), "--board", BOARD], input="n\n")
    assert done.exit_code == 1
    assert "Publish this?" in done.stderr
    assert not any(asked.startswith(("POST", "PUT")) for asked in hub.requests)


def test_a_dry_run_needs_no_token_and_shows_every_file_and_request(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    done = n4090("submit", run, "--board", BOARD, "--dry-run", "--json", "--as", "alice")
    assert done.exit_code == 0, done.output
    steps = json.loads(done.stdout)
    files = {step["file"]: step["bytes"] for step in steps if "file" in step}
    weights = "checkpoints/sft/model.safetensors"
    assert files[weights] == (run / weights).stat().st_size
    assert any(path.endswith("/submission.json") for path in files)
    told = [step["request"].split()[0] for step in steps if "request" in step]
    assert told == ["create", "one", "tag", ".eval_results/core.yaml", "open"]


def test_an_unverified_or_too_large_result_is_not_submitted(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    forged = tmp_path / "forged"
    shutil.copytree(run, forged)
    text = (forged / "result.json").read_text().replace('"total_s": ', '"total_s": 1')
    (forged / "result.json").write_text(text)
    (tmp_path / "board").mkdir()
    where = ("--board", tmp_path / "board", "--as", "alice")
    message, _ = refused(forged, *where)
    assert "refused, so it is not submitted" in message
    (forged / "result.json").write_bytes((run / "result.json").read_bytes())
    (forged / "checkpoints/sft/model.safetensors").unlink()
    message, hint = refused(forged, *where)
    assert "inconclusive" in message
    from kit.board import package

    monkeypatch.setitem(package.TEXT_LIMITS, "events.jsonl", 1000)
    message, hint = refused(run, *where)
    assert "`events.jsonl` is too large" in message and "fewer steps" in hint
    assert not list((tmp_path / "board").iterdir())


def test_a_folder_gets_the_same_files_once(run: Path, tmp_path: Path) -> None:
    board = tmp_path / "board"
    board.mkdir()
    first = json.loads(n4090("submit", run, "--board", board, "--as", "alice", "--json").stdout)
    assert len(first["written"]) == 22  # scores go to the Hub only, once its commit is known
    stamps = {path: path.stat().st_mtime_ns for path in board.rglob("*") if path.is_file()}
    again = json.loads(n4090("submit", run, "--board", board, "--as", "alice", "--json").stdout)
    assert again["state"] == "on the board already"
    assert stamps == {path: path.stat().st_mtime_ns for path in board.rglob("*") if path.is_file()}
    victim = board / first["submission"] / "result.json"
    victim.write_text("{}")
    message, _ = refused(run, "--board", board, "--as", "alice")
    assert "taken by another file" in message
    assert victim.read_text() == "{}"
