"""A trainer with bad manners, in the image: nothing it tries works."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

HERE = Path(__file__).parent


def test_a_hostile_trainer_gets_nowhere(launch: Callable[..., Any], tmp_path: Path) -> None:
    recipe, data = tmp_path / "recipe", tmp_path / "data"
    recipe.mkdir()
    data.mkdir()
    for name in ("hostile.toml", "hostile_trainer.py"):
        shutil.copy(HERE / name, recipe)
    pq.write_table(pa.table({"text": ["a"]}), data / "shard_0.parquet")
    container = launch(
        "run",
        "--recipe",
        "/inputs/recipe/hostile.toml",
        "--data",
        "/inputs/data",
        "--no-probe",
        inputs=((str(recipe), "/inputs/recipe"), (str(data), "/inputs/data")),
    )
    assert container.wait() == 0, container.output
    notes = [data["text"] for data in container.events("note")]
    assert len(notes) > 20
    assert [note for note in notes if not note.startswith("refused")] == []
    assert (container.run / "tokenizer" / "tokenizer.json").read_text() == "mine"
    assert container.result["environment"]["separate_trainer"] is True
    report = json.loads(container.verify().stdout)
    # Only for what it left: a file that may be code, and no model.
    assert {one["check"] for one in report["findings"] if one["status"] == "fail"} == {"V21"}
