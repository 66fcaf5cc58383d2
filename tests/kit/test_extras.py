"""Each command in an environment that has one extra and nothing else."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kit.cli.extras import missing_package

pytest.importorskip("packaging")
HERE = Path(__file__).parent
ASSETS = HERE.parent / "assets"
EXTRAS = ("", "train", "data", "eval", "board")


def bare(extra: str, *lines: list[object]) -> list[dict[str, Any]]:
    """What the command lines give with `extra` alone."""
    given = json.dumps([[str(word) for word in line] for line in lines])
    command = [sys.executable, str(HERE / "bare_extra.py"), extra, given]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    outcomes: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return outcomes


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts as .txt and parquet, a run, and an evaluation."""
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    for package in ("torch", "datatrove", "transformers", "matplotlib"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("extras")
    chance = random.Random(5)
    words = [
        "".join(chance.choices("abdeghilmnorstuw", k=chance.randint(2, 9))) for _ in range(900)
    ]
    texts = [
        ".\n".join(
            " ".join(["The", *chance.choices(words, k=12), "and", "of", "that", "with"])
            for _ in range(25)
        )
        + "."
        for _ in range(40)
    ]
    for name in ("docs", "shards"):
        (folder / name).mkdir()
    for number, text in enumerate(texts):
        (folder / "docs" / f"{number}.txt").write_text(text)
    for number in range(2):
        table = pa.table({"text": texts[number::2]})
        parquet.write_table(table, folder / "shards" / f"{number}.parquet")
    source = f'[[source]]\nname = "docs"\npath = "{folder}/docs/*.txt"\nfilters = false\n'
    (folder / "spec.toml").write_text(f'name = "corpus"\n{source}')
    command = [sys.executable, "-m", "kit.cli.main", "run", "-q", "--no-probe", "--work", folder]
    recipe = ASSETS / "tiny.toml"
    subprocess.run([*command, "-r", recipe], check=True, capture_output=True)
    [run] = (folder / "runs").iterdir()
    run.rename(folder / "run")
    return folder


def lines(place: Path) -> dict[str, list[list[object]]]:
    """Command lines by the extra they are for; ready to run in this order."""
    run = place / "run"
    scored = HERE.parents[1] / "submissions" / "evaluations" / "smollm2-135m-core.json"
    train = ["tokenizer", "train", "--data", place / "shards", "--vocab-size", "300", "--out"]
    compare = ["tokenizer", "compare", place / "t2", "--texts", place / "shards"]
    return {
        "": [["verify", run], ["recipes"], ["recipes", "schema"], ["explain"], ["doctor"]],
        "train": [
            ["recipes", "show", "smoke"],
            ["chat", run, "--prompt", "hi"],
            [*train, place / "t1"],
        ],
        "data": [
            ["data", "build", place / "spec.toml", "--out", place / "corpus", "--workers", "1"],
            ["data", "report", place / "corpus"],
            ["data", "spec"],
            [*train, place / "t2"],
            [*compare, "--recipe", "nano"],
        ],
        "eval": [
            ["eval", "bpb", run, place / "docs" / "0.txt", "--max-texts", "1"],
            ["eval", "bpb", run, place / "shards", "--max-texts", "2"],
            ["eval", "compare", scored, scored],
            ["eval", "chart", scored],
        ],
        "lab": [["report", run], ["plan", "--hours", "1", "--gpu", "rtx4090"]],
        "board": [["board", "rebuild", "--check", "--board", HERE.parents[1] / "submissions"]],
    }


@pytest.mark.slow
def test_each_command_works_with_its_extra_alone(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)  # `plan` writes where it is called
    for extra, some in lines(place).items():
        for line, outcome in zip(some, bare(extra, *some), strict=True):
            allowed = (0, 1) if line[0] == "verify" else (0,)
            assert outcome["code"] in allowed, (extra, line, outcome["output"][-2000:])


@pytest.mark.slow
@pytest.mark.parametrize("extra", EXTRAS)
def test_a_missing_package_is_one_line_with_its_extra(
    place: Path, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    known = lines(place)
    others = [(own, line) for own, some in known.items() if own != extra for line in some]
    for (own, line), outcome in zip(
        others, bare(extra, *(line for _, line in others)), strict=True
    ):
        text = outcome["output"]
        assert outcome["code"] != 99 and "Traceback" not in text, (line, text[-2000:])
        if "pip install" in text and line[0] != "doctor":
            # A command may run with more than one extra: any of them is a remedy.
            fitting = {name for name, some in known.items() if line[:2] in [s[:2] for s in some]}
            named = set(text.split(".[")[1].split("]")[0].split(","))
            assert named & (fitting | {own}), (own, line, text[-2000:])


def test_a_module_of_our_own_is_no_missing_package() -> None:
    assert missing_package(ModuleNotFoundError(name="kit.nowhere"), "run") is None
    found = missing_package(ModuleNotFoundError(name="yaml"), "eval")
    assert found is not None and "pyyaml" in found.message and ".[eval]" in (found.hint or "")
