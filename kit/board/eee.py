"""A result in the format of Every Eval Ever 0.3.0: one evaluation file, and one line an item.

The format is published with its JSON Schemas (schema/every_eval_ever); both files are checked
against them before they are written.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kit.board.model_index import end_of_run
from kit.core_eval.bundle import Item, Task, load_items, open_bundle, scored_items
from kit.core_eval.naming import score_key, score_name
from kit.core_eval.prompts import render_prompts
from kit.errors import KitError, SchemaError
from kit.files import write_bytes
from kit.schemas import load_schema
from kit.trust.sign import result_id

VERSION = "0.3.0"
_FOLDER = "every_eval_ever"

Document = dict[str, Any]


def export_eee(
    run: Path, result: Document, out: Path, *, developer: str, core: Path | None = None
) -> list[Path]:
    """Writes the evaluation of a run below OUT/data, as the format's datastore lays files out.

    Args:
        developer: Who trained the model: a name on the Hub.
        core: The folder of the questions; None: the evaluation file alone, without an item's line.

    Returns:
        The files written.

    Raises:
        KitError: The run was not scored, or the questions are not those it was scored on.
    """
    section = result["quality"]["core"]
    if section is None:
        raise KitError("the run has no score", hint="Only a run that was scored can be exported.")
    scored = json.loads((run / "eval" / "core.json").read_bytes())
    name = result_id(result)
    model = f"n4090-{result['recipe']['name']}-{name}"
    # The format asks for a version 4 UUID; this one is the same for the same result.
    unique = uuid.UUID(bytes=hashlib.sha256(name.encode()).digest()[:16], version=4)
    folder = Path("data") / score_key(section).replace("_", "-") / developer / model
    evaluation = _evaluation(result, scored, developer, model)
    files: list[tuple[Path, bytes]] = []
    if core is not None:
        lines = list(_instances(evaluation, scored, core))
        _check(lines, "instance_level_eval")
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
        path = folder / f"{unique}_samples.jsonl"
        files.append((out / path, text))
        evaluation["detailed_evaluation_results"] = {
            "format": "jsonl",
            "file_path": path.as_posix(),
            "hash_algorithm": "sha256",
            "checksum": hashlib.sha256(text).hexdigest(),
            "total_rows": len(lines),
        }
    _check([evaluation], "eval")
    whole = json.dumps(evaluation, indent=2, ensure_ascii=False) + "\n"
    files.append((out / folder / f"{unique}.json", whole.encode()))
    for path, content in files:
        write_bytes(path, content)
    return [path for path, _ in files]


def _evaluation(result: Document, scored: Document, developer: str, model: str) -> Document:
    section, end = result["quality"]["core"], end_of_run(result)
    stamp = "0" if end is None else str(int(end.timestamp()))
    gpus = (result["hardware"]["before"] or {}).get("gpus") or []
    return {
        "schema_version": VERSION,
        "evaluation_id": f"{score_key(section)}/{developer}/{model}/{stamp}",
        **({} if end is None else {"evaluation_timestamp": end.isoformat()}),
        "retrieved_timestamp": stamp,
        "source_metadata": {
            "source_name": "n4090-kit",
            "source_type": "evaluation_run",
            "source_organization_name": developer,
            "evaluator_relationship": "first_party",
            "additional_details": {
                "result_id": result_id(result),
                "signed_by": result["submitter"]["public_key"],
                "track": result["recipe"]["track"],
            },
        },
        "eval_library": {
            "name": "n4090-kit",
            "version": result["kit"]["version"],
            "additional_details": {"code": result["kit"]["code"]},
        },
        "model_info": {
            "name": model,
            "id": f"{developer}/{model}",
            "developer": developer,
            "inference_engine": {"name": "n4090-kit", "version": result["kit"]["version"]},
            "additional_details": {
                "deployment_type": "self_deployed",
                "model_availability": "unknown",
                "recipe": result["recipe"]["name"],
                "parameters": str(result["training"]["parameters"]),
                "training_tokens": str(result["training"]["tokens"]),
                "dtype": str((scored.get("model") or {}).get("dtype", "unknown")),
                "gpu": str(gpus[0].get("name")) if gpus else "none",
            },
        },
        "evaluation_results": [
            _score(section, scored),
            *(_task(section, task) for task in scored["tasks"]),
        ],
    }


def _score(section: Document, scored: Document) -> Document:
    name, (low, high) = score_name(section), section["interval"] or (None, None)
    uncertainty = {
        "standard_error": {"value": scored["interval"]["standard_error"], "method": "bootstrap"},
        "num_samples": sum(task["n"] for task in section["tasks"]),
    }
    if low is not None:
        uncertainty["confidence_interval"] = {
            **{"lower": low, "upper": high, "confidence_level": 0.95},
            "method": "bootstrap over items",
        }
    return {
        "evaluation_result_id": score_key(section),
        "evaluation_name": name,
        "source_data": _source(section),
        "metric_config": {
            "evaluation_description": "Mean over tasks of accuracy, centred so that 0 is guessing.",
            "metric_id": "mean_centered_accuracy",
            "metric_name": name,
            "metric_kind": "accuracy",
            "metric_unit": "proportion",
            "lower_is_better": False,
            "score_type": "continuous",
            "min_score": "-Infinity",
            "max_score": 1.0,
        },
        "score_details": {"score": section["value"], "uncertainty": uncertainty},
    }


def _task(section: Document, task: Document) -> Document:
    return {
        "evaluation_result_id": f"{score_key(section)}/{task['label']}",
        "evaluation_name": task["label"],
        "source_data": {**_source(section), "dataset_name": task["label"]},
        "metric_config": {
            "evaluation_description": f"Accuracy of {task['type']} items, {task['shots']} examples "
            f"shown; a guess is right in {task['baseline']:g} % of them.",
            "metric_id": "accuracy",
            "metric_name": "accuracy",
            "metric_kind": "accuracy",
            "metric_unit": "proportion",
            "lower_is_better": False,
            "score_type": "continuous",
            "min_score": 0.0,
            "max_score": 1.0,
        },
        "score_details": {
            "score": task["correct"] / task["n"],
            "details": {"centered": repr(task["centered"])},
            "uncertainty": {
                "standard_error": {"value": task["standard_error"], "method": "analytic"},
                "num_samples": task["n"],
            },
        },
    }


def _source(section: Document) -> Document:
    return {
        "dataset_name": f"bundle of the {score_name(section)}",
        "source_type": "other",
        "additional_details": {"digest": section["bundle_digest"]},
    }


def _instances(evaluation: Document, scored: Document, core: Path) -> Iterator[Document]:
    """One line an item: the prompt, the right answer, whether the model was right."""
    labels = [task["label"] for task in scored["tasks"]]
    bundle = open_bundle(core, tasks=labels, allow_custom=True)
    if bundle.digest != scored["bundle"]["digest"]:
        raise SchemaError(
            f"{core} does not hold the questions that the run was scored on",
            hint="Name the run's own --core folder.",
            expected=scored["bundle"]["digest"],
            found=bundle.digest,
        )
    tasks = {task.label: task for task in bundle.selected}
    prefix = evaluation["evaluation_results"][0]["evaluation_result_id"]
    for entry in scored["tasks"]:
        task = tasks[entry["label"]]
        items = load_items(bundle, task, max_per_task=scored["max_per_task"])
        if len(scored_items(items, scored["max_per_task"])) != len(entry["outcomes"]):
            raise SchemaError(f"task {task.label}: not the items that the run was scored on")
        for index, outcome in enumerate(entry["outcomes"]):
            yield {
                "schema_version": VERSION,
                "evaluation_id": evaluation["evaluation_id"],
                "model_id": evaluation["model_info"]["id"],
                "evaluation_name": task.label,
                "evaluation_result_id": f"{prefix}/{task.label}",
                "sample_id": f"{task.label}/{index}",
                "interaction_type": "single_turn",
                **_question(task, items, index),
                "messages": None,
                "answer_attribution": [],
                "evaluation": {"score": float(outcome), "is_correct": outcome == "1"},
            }


def _question(task: Task, items: list[Item], index: int) -> Document:
    """The prompt and its answers; options are scored by loss, so the model gives no text."""
    item, prompts = items[index], render_prompts(task, items, index)
    if task.kind == "language_modeling":
        raw, choices, answer = prompts[0], None, item["continuation"]
    else:
        raw = prompts[0][: _shared(prompts)]
        choices = list(item["choices" if task.kind == "multiple_choice" else "context_options"])
        answer = choices[item["gold"]]
    digest = hashlib.sha256((raw + answer).encode()).hexdigest()
    return {
        "sample_hash": digest,
        "input": {"raw": raw, "reference": [answer], "choices": choices},
        "output": {"raw": []},
    }


def _shared(texts: list[str]) -> int:
    """How many first characters all the texts share."""
    shortest, longest = min(texts), max(texts)
    same = (i for i, pair in enumerate(zip(shortest, longest, strict=False)) if pair[0] != pair[1])
    return next(same, len(shortest))


def _check(documents: list[Document], name: str) -> None:
    """Raises `KitError` where the format's own schema has something against a document."""
    import jsonschema

    validator = jsonschema.Draft7Validator(load_schema(f"{_FOLDER}/{name}"))
    for document in documents:
        for error in validator.iter_errors(document):
            place = "/".join(map(str, error.absolute_path))
            raise KitError(f"not Every Eval Ever {VERSION}: {place}: {error.message[:200]}")
