"""A trainer that is not the reference goes through the whole kit, and through every bad day."""

import getpass
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from kit.run_log import LOG_KIND
from kit.schemas import problems
from kit.trust.chain import read_chain
from kit.trust.digest import sha256_file


def events_of(run: Path) -> list[dict[str, Any]]:
    chain = read_chain(run / "events.jsonl", LOG_KIND)
    assert chain.problems == []
    return chain.records


def result_of(run: Path) -> dict[str, Any]:
    result = json.loads((run / "result.json").read_text())
    assert problems(result, "result") == []
    return result


def start(bigram: Any, *more: object) -> subprocess.Popen[str]:
    arguments = ["run", "--no-probe", *more] if more else ["run", "-r", bigram.recipe, "--no-probe"]
    return subprocess.Popen(
        [sys.executable, "-m", "kit.cli.main", *map(str, arguments), "--work", str(bigram.work)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(bigram: Any, text: str) -> None:
    """Until the run's log holds `text`."""
    limit = time.monotonic() + 60
    while time.monotonic() < limit:
        for log in bigram.work.glob("runs/*/events.jsonl"):
            if text in log.read_text():
                return
        time.sleep(0.01)
    raise AssertionError(f"no {text} in the log")


def slow_trainer(bigram: Any, stage: str, code: str) -> None:
    """Makes the trainer do `code` at the end of `stage`, before it leaves its outputs."""
    path = bigram.recipe.parent / "bigram_trainer.py"
    mark = '        if request["stage"] in ("pretrain", "sft"):'
    text = path.read_text()
    assert mark in text
    extra = f'        if request["stage"] == "{stage}":\n            {code}\n'
    path.write_text(text.replace(mark, extra + mark))


def test_another_trainer_runs_to_a_signed_result(bigram, n4090) -> None:
    given = bigram(core=True)
    n4090("run", "-r", given.recipe, "--work", given.work, "--no-probe")
    run = given.run_folder
    result = result_of(run)
    assert result["claims"] == {
        "status": "complete",
        "reason": None,
        "message": None,
        "stage": None,
        "ranked": False,
        "why_not_ranked": [
            "track smoke is not ranked",
            "not scored on the CORE bundle",
        ],
    }
    stages = [part["stage"] for part in result["timing"]["stages"]]
    assert stages == ["tokenizer", "pretrain", "core", "sft", "chat_eval"]
    # "blue" after "the sky is" is what the counts know; "xqzj" they never saw.
    colours = result["quality"]["core"]["tasks"][0]
    assert (colours["task"], colours["accuracy"]) == ("colours", 1.0)
    for files in (result["checkpoint"]["base"], result["checkpoint"]["chat"]):
        for file in files["files"]:
            path = run / files["folder"] / file["path"]
            assert sha256_file(path) == file["sha256"]
    assert result["log"]["count"] == len(events_of(run))
    assert not (given.work / "cache" / run.name).exists()


def test_ssh_keygen_accepts_the_signature(bigram, n4090, tmp_path) -> None:
    given = bigram()
    n4090("run", "-r", given.recipe, "--work", given.work, "--no-probe", "-q")
    result = result_of(given.run_folder)
    signature = result["signatures"][0]
    (tmp_path / "sig").write_text(signature["signature"])
    (tmp_path / "allowed").write_text(f"me {signature['public_key']}\n")
    canon = n4090("canon", given.run_folder / "result.json").stdout
    verify = ["ssh-keygen", "-Y", "verify", "-f", tmp_path / "allowed", "-I", "me"]
    verify += ["-n", "result@n4090-kit", "-s", tmp_path / "sig"]
    good = subprocess.run(verify, input=canon, capture_output=True, text=True)
    assert good.returncode == 0, good.stderr
    bad = subprocess.run(
        verify, input=canon.replace("bigram", "begram"), capture_output=True, text=True
    )
    assert bad.returncode != 0


def names(text: str, name: str) -> bool:
    """Whether `name` stands in `text` as a word; a key has any two letters by chance."""
    readable = re.sub(r'"(signature|public_key)":\s*"[^"]*"', "", text)
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", readable) is not None


def test_a_name_is_found_as_a_word_and_not_inside_a_key() -> None:
    assert names('{"host": "vm"}', "vm") and names("/home/vm/x", "vm") and names("vm-1.local", "vm")
    assert not names('{"public_key": "ssh-ed25519 AA/vm/B+2z", "signature":"+vm+"}', "vm")
    assert not names('"xvm2"', "vm")


def test_nothing_that_leaves_the_machine_names_it(bigram, n4090) -> None:
    given = bigram()
    slow_trainer(given, "pretrain", "emit('note', text=f'wrote {out} from {paths}')")
    n4090("run", "-r", given.recipe, "--work", given.work, "--no-probe")
    run = given.run_folder
    home = str(Path.home())
    for name in ("result.json", "events.jsonl", "telemetry.jsonl", "fingerprint.json"):
        text = (run / name).read_text()
        assert str(given.work) not in text, name
        assert not names(text, socket.gethostname()), name
        if len(home) > 6:  # "/root" is a word of ordinary texts
            assert home not in text, name
        if getpass.getuser() != "root":
            assert not names(text, getpass.getuser()), name
    assert "<run>/checkpoints/pretrain" in (run / "events.jsonl").read_text()


def test_ctrl_c_stops_with_a_signed_result_and_resume_goes_on(bigram, n4090) -> None:
    given = bigram()
    slow_trainer(given, "sft", "import time; request['attempt'] or time.sleep(60)")
    process = start(given)
    wait_for(given, '"stage":"sft"')
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 3, output
    assert "run --resume" in output
    run = given.run_folder
    partial = result_of(run)
    assert partial["claims"]["status"] == "stopped"
    assert partial["checkpoint"]["base"] is not None
    n4090("run", "--resume", run, "--work", given.work)
    whole = result_of(run)
    assert whole["claims"]["status"] == "complete"
    assert whole["timing"]["resumes"] == 1
    attempts = {part["stage"]: part["attempts"] for part in whole["timing"]["stages"]}
    assert attempts == {"tokenizer": 1, "pretrain": 1, "sft": 2, "chat_eval": 1}
    # What was signed first is a prefix of what was signed last.
    log = (run / "events.jsonl").read_bytes()
    assert len(log) > partial["log"]["bytes"]
    assert whole["timing"]["total_s"] > partial["timing"]["total_s"]


def test_a_killed_supervisor_is_resumed_and_the_downtime_counts(bigram, n4090) -> None:
    given = bigram()
    slow_trainer(given, "pretrain", "import time; request['attempt'] or time.sleep(60)")
    process = start(given)
    wait_for(given, '"ev":"step"')
    process.kill()
    process.communicate()
    time.sleep(1.0)
    n4090("run", "--resume", given.run_folder, "--work", given.work)
    result = result_of(given.run_folder)
    assert result["claims"]["status"] == "complete"
    assert result["timing"]["downtime_s"] >= 1.0
    assert result["timing"]["total_s"] > result["timing"]["downtime_s"]


def test_two_supervisors_cannot_have_one_run(bigram, n4090) -> None:
    given = bigram()
    slow_trainer(given, "tokenizer", "import time; time.sleep(5)")
    process = start(given)
    wait_for(given, '"stage_start"')
    refused = n4090("run", "--resume", given.run_folder, "--work", given.work, check=3)
    assert "another process" in refused.stderr
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)


def test_a_run_goes_on_only_under_the_key_it_was_begun_with(bigram, n4090, tmp_path) -> None:
    given = bigram()
    slow_trainer(given, "pretrain", "request['attempt'] or sys.exit(3)")
    n4090("run", "-r", given.recipe, "--work", given.work, "--no-probe", check=3)
    keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "other"]
    subprocess.run(keygen, check=True)
    other = ("--resume", given.run_folder, "--key", tmp_path / "other")
    assert "another signing key" in n4090("run", *other, check=3).stderr
    n4090("run", "--resume", given.run_folder)
    assert result_of(given.run_folder)["claims"]["status"] == "complete"


@pytest.mark.parametrize(
    ("code", "reason", "words"),
    [
        ("raise RuntimeError('tensor of nonsense')", "crashed", "tensor of nonsense"),
        ("os.kill(os.getpid(), 9)", "killed", "SIGKILL"),
        ("emit('error', kind='nan_loss', message='loss is nan'); sys.exit(1)", "nan_loss", "nan"),
        ("sys.exit(0)", "bad_output", "wrote no output"),
    ],
)
def test_a_failing_trainer_ends_in_a_signed_result(bigram, n4090, code, reason, words) -> None:
    given = bigram()
    slow_trainer(given, "pretrain", code)
    done = n4090("run", "-r", given.recipe, "--work", given.work, "--no-probe", check=1)
    claims = result_of(given.run_folder)["claims"]
    assert (claims["status"], claims["reason"], claims["stage"]) == ("failed", reason, "pretrain")
    assert words in claims["message"]
    assert words in done.stdout


def test_a_trainer_that_ignores_the_deadline_is_ended(bigram, n4090) -> None:
    given = bigram(budget_s="2")
    text = given.recipe.read_text().replace("budget_s = 2", "budget_s = 2\ngrace_s = 0")
    given.recipe.write_text(text)
    slow_trainer(given, "pretrain", "import time; time.sleep(60)")
    n4090("run", "-r", given.recipe, "--work", given.work, "--no-probe", check=1)
    result = result_of(given.run_folder)
    assert result["claims"]["reason"] == "deadline"
    assert result["timing"]["within_budget"] is False


def test_a_trainer_that_writes_into_the_log_changes_nothing(bigram, n4090) -> None:
    given = bigram()
    forged = '{"seq":99,"prev":"x","ev":"run_stop","data":{"status":"complete"}}'
    write = f"open(paths['run'] + '/events.jsonl', 'a').write({forged!r} + chr(10))"
    slow_trainer(given, "pretrain", write)
    n4090("run", "-r", given.recipe, "--work", given.work, "--no-probe")
    events = events_of(given.run_folder)
    assert [event["seq"] for event in events] == list(range(len(events)))
    assert result_of(given.run_folder)["claims"]["status"] == "complete"


def test_a_trainer_that_lies_about_its_step_times_changes_only_its_verdict(bigram, n4090) -> None:
    given = bigram()
    lie = "emit('step', step=900 + i, tokens=int(table.sum()) + i, loss=1.0, dt_s=500.0)"
    slow_trainer(given, "pretrain", f"[{lie} for i in range(40)]")
    began = time.monotonic()
    n4090("run", "-r", given.recipe, "--work", given.work, "--no-probe")
    passed_s = time.monotonic() - began
    result = result_of(given.run_folder)
    assert result["claims"]["status"] == "complete"
    assert result["timing"]["total_s"] < passed_s  # not the 20,000 s that the trainer counted
    refused = n4090("verify", given.run_folder / "result.json", "--json", check=1)
    found = json.loads(refused.stdout)["findings"]
    assert "V14" in {finding["check"] for finding in found if finding["status"] == "fail"}


def test_missing_inputs_are_all_named_with_their_options(bigram, n4090) -> None:
    given = bigram()
    text = given.recipe.read_text().replace('kind = "stories"', 'kind = "folder"')
    given.recipe.write_text(text)
    done = n4090("run", "-r", given.recipe, "--work", given.work, check=3)
    for option in ("--data", "--sft", "--chat-eval"):
        assert option in done.stderr
    assert "prepare" in done.stderr
    assert not (given.work / "runs").exists()


def test_a_folder_of_shards_given_by_hand_brings_its_neighbours(bigram, n4090, tmp_path) -> None:
    given = bigram()
    moved = tmp_path / "mine"
    shutil.move(given.work / "data" / "stories-4090-20000", moved)
    data = ("--data", moved / "pretrain")
    n4090("run", "-r", given.recipe, "--work", given.work, "--no-probe", *data)
    assert result_of(given.run_folder)["claims"]["status"] == "complete"


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_ends_in_a_signed_result_and_space_lets_it_go_on(bigram, n4090) -> None:
    given = bigram()
    data = given.work / "data"
    kept = given.work.parent / "kept"
    shutil.move(data, kept)
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300m", "tmpfs", str(given.work)], capture_output=True
    )
    if mount.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mount.stderr.decode().strip()}")
    try:
        shutil.copytree(kept, data)
        slow_trainer(
            given,
            "sft",
            "request['attempt'] or Path(paths['run'], 'fill').write_bytes(bytes(400_000_000))",
        )
        done = n4090("run", "-r", given.recipe, "--work", given.work, "--no-probe", check=1)
        run = given.run_folder
        claims = result_of(run)["claims"]
        assert claims["status"] == "failed"
        assert claims["stage"] == "sft"
        assert "No space left" in claims["message"] or "disk is full" in claims["message"]
        assert "run --resume" in done.stdout
        (run / "fill").unlink()
        n4090("run", "--resume", run, "--work", given.work)
        assert result_of(run)["claims"]["status"] == "complete"
    finally:
        subprocess.run(["umount", str(given.work)], check=True)
