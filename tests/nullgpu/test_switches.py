"""Every switch of a recipe alone, and pairs that share code, in stage `pretrain`."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import pytest
from nullgpu_runs import INSIDE, Log, NullDevice
from nullgpu_switches import BASE, OF_THE_HOST, REFUSED, cases, changes_of, fields
from tiny_training import tiny_recipe

from reference.config.problems import problems

STEPS = BASE["pretrain"]["num_steps"]
# Waits for the device that a step may have, by kind: it reads its loss.
WAITS = {"cudaStreamSynchronize": 1}
# A teacher is another model: the step that first has one compiles its pass without gradients, and
# copies its two tables of angles, as does each step that renews it.
TEACHER, TEACHER_WAITS = "pretrain.distill_", 2


def test_every_field_of_a_recipe_has_a_case():
    """Also runs in `make test`: whoever adds a switch adds a case, or says that the host has it."""
    forgotten = [
        name
        for name, field in fields().items()
        if not changes_of(name, field) and name.split(".")[1] not in OF_THE_HOST[name.split(".")[0]]
    ]
    assert not forgotten, f"no case in nullgpu_switches.py for {', '.join(forgotten)}"
    gone = {f"{section}.{key}" for section, keys in OF_THE_HOST.items() for key in keys}
    assert gone <= set(fields()), gone - set(fields())


def test_the_cases_are_valid_recipes():
    plain = tiny_recipe()
    for name, changes in cases().items():
        recipe = {**plain, **{key: {**plain[key], **values} for key, values in changes.items()}}
        assert not list(problems(recipe)), name


class Shown(NamedTuple):
    """What the stage reported in a case, and the device's log of it."""

    row: dict[str, Any]
    log: Log


@pytest.fixture(scope="module")
def shown(null_gpu: NullDevice, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Shown]:
    """All cases in one process, which imports and compiles what they share once."""
    folder = tmp_path_factory.mktemp("switches")
    asked, out, log = (folder / name for name in ("cases.json", "out.jsonl", "log"))
    asked.write_text(json.dumps(cases()))
    done = null_gpu.run(INSIDE / "switches.py", asked, out, log=log, check=False)
    rows = {row["case"]: row for row in map(json.loads, out.read_text().splitlines())}
    assert rows, done.stderr[-3000:]
    logs = Log.read(log).by_case()
    return {name: Shown(row, logs[name]) for name, row in rows.items()}


@pytest.mark.gpuless_full
@pytest.mark.parametrize("name", cases())
def test_a_switch_on_the_device(shown: dict[str, Shown], name):
    assert name in shown, "the process ended before this case"
    row, log = shown[name]
    lacking = [text for switch, text in REFUSED.items() if switch in name.split(" + ")]
    if lacking:
        assert lacking[0] in row["error"]
        return
    changes = cases()[name]
    assert row["error"] is None
    assert row["steps"] == list(range(STEPS)) and row["checkpoints"]
    assert "val_bpb" in row["evaluations"]
    assert not row["breaks"]
    on_the_way = [note for note in row["notes"] if "on the way" in note]
    assert len(on_the_way) <= (TEACHER in name)
    compiled = [note for note in row["notes"] if "graphs compiled in advance" in note]
    assert bool(compiled) == (changes["pretrain"].get("compile") != "off")
    assert not log.of("refused") and not log.of("oom")
    for step in log.stretches("step", "end"):
        for kind, count in step.count("sync").items():
            assert count <= WAITS.get(kind, 0) + TEACHER_WAITS * (TEACHER in name), (kind, count)
