"""V07 recomputes each figure by itself: a mistake in `kit.result` becomes a finding."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.synthetic import gpu_run

from kit import result
from kit.verify import verify_result

VERIFY = Path(__file__).parents[2] / "kit" / "verify"
# In the result's builder: each figure off by more than rounding.
MISTAKES: dict[str, Callable[[Any], Any]] = {
    "timing_section": lambda section: replace(section, total_s=section.total_s * 0.99),
    "training_section": lambda section: replace(section, final_loss=section.final_loss - 0.01),
    "quality_section": lambda section: replace(section, val_bpb=replace(section.val_bpb, last=0.8)),
    "core_section": lambda section: replace(section, value=section.value + 0.001),
    "chat_section": lambda section: replace(section, ended_rate=1.0),
    "energy_section": lambda section: replace(section, kwh=section.kwh * 0.9),
    "environment_section": lambda section: replace(section, rx_bytes=0),
    "runs_section": lambda section: replace(section, index=7),
    "data_section": lambda section: replace(section, data=replace(section.data, bytes=1)),
    "claims_section": lambda section: replace(section, status="stopped"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_of_the_builder_is_found(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = getattr(result, name)
    monkeypatch.setattr(result, name, lambda *arguments: MISTAKES[name](honest(*arguments)))
    report = verify_result(gpu_run(steps=24).write(tmp_path / "run"))
    assert report.verdict == "refused", name


def test_every_section_of_the_builder_is_covered() -> None:
    sections = {name for name in vars(result) if name.endswith("_section")}
    assert sections - {"notes_section"} == set(MISTAKES)  # notes are compared word for word


def test_the_verifier_imports_nothing_of_the_builder() -> None:
    for path in VERIFY.rglob("*.py"):
        if path.name in ("draft.py", "synthetic.py"):
            continue  # they write results
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.module != "kit.result", path
                assert not (node.module == "kit" and "result" in [a.name for a in node.names]), path
