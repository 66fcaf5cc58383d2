"""`verify`, `explain`, `canon`, `keys` as people and scripts call them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tamper
from click.testing import CliRunner, Result

from kit.cli.main import cli
from kit.errors import PrerequisiteError, SchemaError
from kit.schemas import problems
from kit.trust import sshsig
from kit.verify import CHECKS, Options, verify_result
from kit.verify.html import page


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("honest") / "run"
    tamper.gpu_run().write(folder)
    return folder


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def change(folder: Path, copy: Path, edit: Any) -> Path:
    shutil.copytree(folder, copy)
    result = json.loads((copy / "result.json").read_text())
    edit(result)
    (copy / "result.json").write_text(json.dumps(result))
    return copy


def test_exit_0_when_nothing_contradicts(honest: Path) -> None:
    for target in (honest, honest / "result.json"):
        done = call("verify", target)
        assert done.exit_code == 0, done.output
        assert "CONSISTENT" in done.output and "VERIFIED" not in done.output.upper()


def test_exit_1_when_refused_and_the_check_is_named(honest: Path, tmp_path: Path) -> None:
    bad = change(honest, tmp_path / "bad", lambda result: result["timing"].update(total_s=1.0))
    done = call("verify", bad)
    assert done.exit_code == 1
    assert "V02" in done.output and "REFUSED" in done.output
    assert "timing.total_s" in done.output


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff\xfe"])
def test_exit_2_when_unreadable(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "result.json"
    if content is not None:
        path.write_bytes(content)
    assert call("verify", path).exit_code == 2
    assert call("verify").exit_code == 2
    assert call("verify", path, "--no-such-option").exit_code == 2


@pytest.mark.parametrize(
    "gone", ["events.jsonl", "telemetry.jsonl", "eval", "checkpoints/sft/config.json"]
)
def test_exit_3_when_evidence_is_missing(honest: Path, tmp_path: Path, gone: str) -> None:
    shutil.copytree(honest, tmp_path / "run")
    path = tmp_path / "run" / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    report = verify_result(tmp_path / "run")
    assert (report.verdict, report.exit_code) == ("inconclusive", 3), report.refused_by
    assert "missing" in call("verify", tmp_path / "run").output


def test_a_submission_without_its_weights_is_checked_as_far_as_text_goes(
    honest: Path, tmp_path: Path
) -> None:
    shutil.copytree(
        honest, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", "tokenizer")
    )
    report = verify_result(tmp_path / "run")
    assert report.exit_code == 0 and report.status("V21") == "skip"
    assert "not beside the result" in report.of("V21")[0].message


def test_strict_refuses_warnings(tmp_path: Path) -> None:
    folder = tmp_path / "hot"
    tamper.HONEST["4090, hot and throttled"]().write(folder)
    assert call("verify", folder).exit_code == 0
    assert call("verify", folder, "--strict").exit_code == 1


def test_json_reports_fit_their_schema(honest: Path, tmp_path: Path) -> None:
    bad = change(honest, tmp_path / "bad", lambda result: result["timing"].update(total_s=1.0))
    (tmp_path / "result.json").write_text("{")
    for target in (honest, bad, tmp_path):
        done = call("verify", target, "--json")
        report = json.loads(done.stdout)
        assert problems(report, "verify-report") == []
        assert report["exit_code"] == done.exit_code


def test_explain_says_what_each_check_stops() -> None:
    for check in CHECKS:
        done = call("explain", check.id)
        assert done.exit_code == 0 and check.title in done.output
        assert call("verify", "--explain", check.id.lower()).output == done.output
        assert check.protects and check.looks_at and check.body.__doc__
    assert all(check.id in call("explain").output for check in CHECKS)
    assert call("explain", "V99").exit_code == 2


def test_canon_prints_what_ssh_keygen_verifies(honest: Path, tmp_path: Path) -> None:
    if shutil.which("ssh-keygen") is None:
        pytest.skip("ssh-keygen is not installed")
    result = json.loads((honest / "result.json").read_text())
    entry = result["signatures"][0]
    (tmp_path / "allowed").write_text(f"alice {entry['public_key']}\n")
    (tmp_path / "sig").write_text(entry["signature"])
    canon = subprocess.run(
        [sys.executable, "-c", "from kit.cli.main import main; main()", "canon", str(honest)],
        capture_output=True,
        check=True,
    )
    command = ["ssh-keygen", "-Y", "verify", "-f", tmp_path / "allowed", "-I", "alice"]
    command += ["-n", sshsig.RESULT_NAMESPACE, "-s", tmp_path / "sig"]
    done = subprocess.run(command, input=canon.stdout, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_allowed_signers_name_the_signer(honest: Path, tmp_path: Path) -> None:
    key = sshsig.public_key(tamper.KEY).line
    (tmp_path / "allowed").write_text(f'# us\nalice namespaces="result@n4090-kit" {key}\n')
    done = call("verify", honest, "--allowed-signers", tmp_path / "allowed")
    assert done.exit_code == 0 and "signed by alice" in done.output


def test_the_page_is_self_contained_and_escapes(honest: Path, tmp_path: Path) -> None:
    bad = change(
        honest,
        tmp_path / "bad",
        lambda result: result["runs"].update(id="<script>alert(1)</script>"),
    )
    text = page(verify_result(bad))
    assert "<script" not in text and "&lt;script&gt;" in text
    assert "http://" not in text and "https://" not in text and "src=" not in text
    refused = verify_result(bad).refused_by
    assert f"Refused by {', '.join(refused)}." in text
    assert f"<table><tr><th>{refused[0]} " in text, "what refuses comes first"
    done = call("verify", honest, "--html", tmp_path / "report.html")
    assert done.exit_code == 0 and (tmp_path / "report.html").read_text().count("<tr>") > 20


def test_the_page_counts_what_is_missing(honest: Path, tmp_path: Path) -> None:
    (tmp_path / "alone").mkdir()
    shutil.copy(honest / "result.json" if honest.is_dir() else honest, tmp_path / "alone")
    report = verify_result(tmp_path / "alone" / "result.json")
    lacking = [name for name in report.checks() if any(f.missing for f in report.of(name))]
    assert lacking and f"Checks: {len(lacking)} lack evidence, " in page(report)


def test_a_page_that_cannot_be_written_costs_neither_report_nor_a_traceback(
    honest: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    command = [sys.executable, "-m", "kit.cli.main", "verify", honest, "--html"]
    done = subprocess.run([*command, tmp_path / "file/x.html"], capture_output=True, text=True)
    assert done.returncode == 3 and "CONSISTENT" in done.stdout
    assert "file: File exists" in done.stderr and "hint: Name another place" in done.stderr
    assert "Traceback" not in done.stderr
    made = call("verify", honest, "--html", tmp_path / "new/folder/x.html")
    assert made.exit_code == 0 and (tmp_path / "new/folder/x.html").is_file()


def test_verify_imports_no_torch_and_only_base_dependencies(honest: Path) -> None:
    heavy = (
        "torch",
        "psutil",
        "numpy",
        "docker",
        "huggingface_hub",
        "pyarrow",
        "pynvml",
        "requests",
    )
    code = f"""
import sys
from pathlib import Path
from kit.verify import verify_result
report = verify_result(Path({str(honest)!r}))
print(report.verdict, sorted(set(sys.modules) & set({heavy!r})))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "consistent []"


def test_a_key_that_is_not_there_yet_is_told_with_the_command_that_makes_it(tmp_path: Path) -> None:
    done = call("keys", "show", "--work", tmp_path)
    assert done.exit_code != 0
    assert isinstance(done.exception, PrerequisiteError)
    assert "does not exist" in done.exception.message and "keys make" in str(done.exception.hint)


def test_keys_are_made_shown_and_revoked(honest: Path, tmp_path: Path) -> None:
    made = call("keys", "make", "--work", tmp_path)
    assert made.exit_code == 0, made.output
    shown = call("keys", "show", "--work", tmp_path, "--json")
    facts = json.loads(shown.stdout)
    assert facts["public_key"] in made.output and not facts["revoked"]
    assert call("keys", "make", "--work", tmp_path).exit_code != 0
    assert call("keys", "revoke", "--work", tmp_path, "--yes").exit_code == 0
    assert "REVOKED" in call("keys", "show", "--work", tmp_path).output


def test_a_witness_signs_beside_the_submitter(honest: Path, tmp_path: Path) -> None:
    shutil.copytree(honest, tmp_path / "run")
    call("keys", "make", "--work", tmp_path)
    assert call("keys", "sign", tmp_path / "run", "--work", tmp_path).exit_code == 0
    done = call("verify", tmp_path / "run")
    assert done.exit_code == 0 and "2 valid" in done.output
    assert call("keys", "sign", tmp_path / "run", "--work", tmp_path).exit_code != 0


def test_hashing_reports_its_progress(honest: Path) -> None:
    seen: list[int] = []
    report = verify_result(honest, Options(progress=seen.append))
    weights = (honest / "checkpoints/pretrain/model.safetensors").stat().st_size
    assert report.exit_code == 0 and sum(seen) >= 2 * weights


def test_a_revoked_key_refuses_its_results(honest: Path, tmp_path: Path) -> None:
    from kit.trust.keys import revoke

    path = revoke(tmp_path, sshsig.public_key(tamper.KEY).line, "stolen")
    done = call("verify", honest, "--revoked", path)
    assert done.exit_code == 1 and "V03" in done.output


def test_the_revoked_keys_of_a_board_count_without_an_option(honest: Path, tmp_path: Path) -> None:
    from kit.trust.keys import revoke

    folder = tmp_path / "submissions" / "2026" / "alice" / "0123456789abcdef"
    shutil.copytree(honest, folder)
    assert call("verify", folder).exit_code == 0
    revoke(tmp_path / "submissions", sshsig.public_key(tamper.KEY).line, "stolen")
    assert call("verify", folder).exit_code == 0  # a list in any folder is not a board's
    (tmp_path / "submissions" / "board.json").write_text("{}")
    done = call("verify", folder)
    assert done.exit_code == 1 and "revoked by its owner" in done.output


def test_a_line_of_the_revocation_list_that_is_not_a_key_is_named(
    honest: Path, tmp_path: Path
) -> None:
    from kit.trust.keys import revoke

    path = revoke(tmp_path, sshsig.public_key(tamper.KEY).line, "stolen")
    path.write_text("no key at all\n" + path.read_text())
    done = call("verify", honest, "--revoked", path)
    assert "line 1 revokes nothing" in done.stderr
    assert done.exit_code == 1 and "V03" in done.output


@pytest.mark.parametrize(
    ("option", "content"),
    [
        ("--allowed-signers", None),
        ("--identities", None),
        ("--identities", b"[]"),
        ("--revoked", None),
        ("--revoked", b"no key at all"),
        ("--group", None),
        ("--group", b"{"),
        ("--against", None),
        ("--against", b"{"),
        ("--core", None),
        ("--data", None),
    ],
)
def test_a_slip_of_the_verifiers_own_is_no_finding(
    honest: Path, tmp_path: Path, option: str, content: bytes | None
) -> None:
    own = tmp_path / "own"
    if content is not None:
        own.write_bytes(content)
    done = call("verify", honest, option, own)
    if content is None:
        assert done.exit_code == 2 and "does not exist" in done.stderr
    else:
        assert isinstance(done.exception, SchemaError) and str(own.name) in str(done.exception)
    assert "REFUSED" not in done.output and "CONSISTENT" not in done.output


def test_nothing_compared_is_not_a_pass(honest: Path, tmp_path: Path) -> None:
    done = call("verify", honest, "--against", tmp_path, "--all")
    assert "no other row lies where --against looks" in " ".join(done.output.split())
