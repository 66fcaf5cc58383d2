"""Bundles of made questions, in the layout of the CORE bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def make_bundle(root: Path, items: int = 40) -> Path:
    """Three tasks of the three types, questions of numbers."""
    (root / "eval_data").mkdir(parents=True)
    rows: dict[str, list[dict[str, Any]]] = {"choose": [], "refer": [], "say": []}
    for i in range(items):
        rows["choose"].append(
            {"query": f"What is {i} plus one?", "choices": [f"{i + 1}", f"{i + 2}"], "gold": 0}
        )
        rows["refer"].append(
            {"context_options": [f"So {i} is", f"So {i + 1} is"], "continuation": "it.", "gold": 1}
        )
        rows["say"].append({"context": f"After {i} comes", "continuation": f"{i + 1}"})
    kinds = {"choose": "multiple_choice", "refer": "schema", "say": "language_modeling"}
    tasks = "".join(
        f"- {{label: {label}, dataset_uri: {label}.jsonl, num_fewshot: [2], "
        f"icl_task_type: {kind}}}\n"
        for label, kind in kinds.items()
    )
    (root / "core.yaml").write_text(f"icl_tasks:\n{tasks}")
    (root / "eval_meta_data.csv").write_text(
        "Eval Task,Random baseline\nchoose,50\nrefer,50\nsay,0\n"
    )
    for label, lines in rows.items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (root / f"eval_data/{label}.jsonl").write_text(text)
    return root
