"""Exports, read by the libraries they are made for."""

from __future__ import annotations

import base64
import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import tamper
from click.testing import CliRunner, Result

from kit.board.model_index import model_index
from kit.cli.main import cli
from kit.errors import PrerequisiteError
from kit.export_formats import dsse, mllog, public_pem
from kit.trust.canonical import parse_strict
from kit.trust.keys import Signer, load_or_create_signer


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "run"
    tamper.gpu_run().write(folder)
    return folder


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def test_dsse_is_accepted_by_securesystemslib(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("securesystemslib")
    from cryptography.hazmat.primitives.serialization import load_pem_public_key
    from securesystemslib.dsse import Envelope
    from securesystemslib.exceptions import VerificationError
    from securesystemslib.signer import SSlibKey

    signer = load_or_create_signer(tmp_path)
    result = json.loads((run / "result.json").read_text())
    document = dsse(result, signer)
    public = SSlibKey.from_crypto(
        load_pem_public_key(public_pem(signer).encode()), signer.fingerprint
    )
    # securesystemslib finds signatures by its own key ids.
    Envelope.from_dict(copy.deepcopy(document)).verify([public], 1)
    payload = parse_strict(base64.b64decode(document["payload"]))
    assert payload["predicate"] == result
    assert len(payload["subject"]) == 7
    document["payload"] = base64.b64encode(base64.b64decode(document["payload"]) + b" ").decode()
    with pytest.raises(VerificationError):
        Envelope.from_dict(document).verify([public], 1)


def test_dsse_with_an_agents_key_is_said_to_be_impossible(run: Path, tmp_path: Path) -> None:
    signer = Signer(tamper.sshsig.public_key(tamper.KEY).line, False, "ssh-keygen", tmp_path)
    with pytest.raises(PrerequisiteError, match="ssh-keygen"):
        dsse(json.loads((run / "result.json").read_text()), signer)


def test_the_model_index_is_yaml_with_the_scores(run: Path) -> None:
    yaml = pytest.importorskip("yaml")
    result = json.loads((run / "result.json").read_text())
    card = next(yaml.safe_load_all(model_index(result)))
    entries = card["model-index"][0]["results"]
    values = {entry["metrics"][0]["name"]: entry["metrics"][0]["value"] for entry in entries}
    assert values["CORE"] == result["quality"]["core"]["value"]
    assert values["bits per byte"] == result["quality"]["val_bpb"]["last"]
    assert not any(entry["metrics"][0]["verified"] for entry in entries)


def check_with_mlperf(folder: Path, text: str) -> bool:
    """What MLPerf's own compliance checker says of a log, for a language model in the open
    division.
    """
    path = folder / "result_0.txt"
    path.write_text(text)
    module = "mlperf_logging.compliance_checker"
    command = [sys.executable, "-m", module, "--usage", "training", "--ruleset", "5.1.0"]
    command += ["--log_output", str(folder / "checker.log"), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    return done.returncode == 0 and "SUCCESS" in done.stdout + done.stderr


def exported(folder: Path) -> str:
    result = json.loads((folder / "result.json").read_text())
    return "\n".join(mllog(folder, result, "llama31_8b")) + "\n"


def test_the_mlperf_checker_accepts_the_log(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("mlperf_logging")
    assert check_with_mlperf(tmp_path, exported(run))


@pytest.mark.slow
def test_who_catches_what(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same mutations through MLPerf's checker, and the table of who refuses them."""
    pytest.importorskip("mlperf_logging")
    from mutations import MUTATIONS

    from kit.verify import verify_result

    names = [
        "stop line moved before the last stage",
        "stop time set back, its line left in place",
        "start line moved behind tokenizer training",
        "two starts",
        "no stop",
        "one event steps back in time",
        "ten steps cut out",
        "five silent minutes",
        "all times halved, on every clock",
        "better than the card can be",
        "two GPUs",
        "an H100 that calls itself a 4090",
        "tokens that were not seen",
        "another run's log",
    ]
    rows = []
    for case in (case for case in MUTATIONS if case.name in names):
        draft = tamper.gpu_run()
        if case.kind == "draft":
            case.apply(draft)
        folder = tmp_path / case.name.replace(" ", "-").replace(",", "").replace("'", "")
        path = draft.write(folder)
        if case.kind == "file":
            case.apply(folder)
        ours = verify_result(path).refused_by
        theirs = check_with_mlperf(folder, exported(folder))
        rows.append((case.name, ", ".join(ours), "accepts" if theirs else "refuses"))
        assert ours
    with capsys.disabled():
        print()
        for name, ours, theirs in rows:
            print(f"  {name:45} n4090-kit: {ours:10} MLPerf: {theirs}")
    assert len(rows) == len(names)
    assert sum(theirs == "accepts" for _, _, theirs in rows) >= len(rows) // 2


def test_the_commands_print_what_they_say(run: Path, tmp_path: Path) -> None:
    assert call("export", "mllog", run).stdout.startswith(":::MLLOG {")
    assert call("export", "model-index", run).stdout.startswith("---\n")
    done = call("export", "dsse", run, "--work", tmp_path, "--public-key", tmp_path / "pub.pem")
    assert json.loads(done.stdout)["payloadType"] == "application/vnd.in-toto+json"
    assert (tmp_path / "pub.pem").read_text().startswith("-----BEGIN PUBLIC KEY")


def test_a_refused_result_is_not_exported(run: Path, tmp_path: Path) -> None:
    tamper.gpu_run(seed=3).write(tmp_path / "bad")
    result = json.loads((tmp_path / "bad/result.json").read_text())
    result["timing"]["total_s"] = 1.0
    (tmp_path / "bad/result.json").write_text(json.dumps(result))
    done = call("export", "model-index", tmp_path / "bad")
    assert done.exit_code != 0 and "V02" in str(done.exception)
