"""The report of `reference.gpu_check`, on disk after every figure; the next call continues it."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from reference.bench.gpu_predictions import Prediction
from reference.files import write_whole


class OtherReport(Exception):
    """The folder holds figures of another card, another torch or other code."""


class Report:
    """Collects parts, keeps the files up to date, and knows how much time is left.

    A later call with the same `key` takes over what earlier calls have finished.

    Args:
        key: What the figures depend on: card, versions, code, options.
        judge: The predictions beside what the parts have measured so far.

    Raises:
        OtherReport: `out` holds figures with another key.
    """

    def __init__(
        self,
        out: Path,
        seconds: float,
        key: Mapping[str, Any] | None = None,
        judge: Callable[[Mapping[str, Any]], list[Prediction]] = lambda parts: [],
    ) -> None:
        self.out, self._began = out, time.perf_counter()
        self._ends = self._began + seconds
        self._key, self._judge = dict(key or {}), judge
        self.parts: dict[str, Any] = {}
        self.not_reached: list[str] = []
        out.mkdir(parents=True, exist_ok=True)
        file = out / "gpu_check.json"
        if file.exists():
            earlier = json.loads(file.read_text())
            if earlier.get("key") != self._key:
                raise OtherReport(
                    f"{out} holds figures of another card, torch or code: choose another --out"
                )
            self.parts = {name: part for name, part in earlier["parts"].items() if _whole(part)}

    @property
    def left_s(self) -> float:
        return self._ends - time.perf_counter()

    def result(self, name: str) -> Any:
        """What a part showed; None if it was not reached."""
        return self.parts.get(name, {}).get("result")

    def part(self, name: str, needed_s: float, make: Callable[[], Any]) -> None:
        """Runs a part that no earlier call finished, if there is time left for it.

        `make` returns the part's figures, or yields rows, which are written one by one. Its failure
        is a row of the report, not the end.
        """
        if name in self.parts:
            return
        if self.left_s < needed_s:
            self.not_reached.append(name)
            self.write()
            return
        began = time.perf_counter()
        try:
            made = make()
            rows = made if isinstance(made, Iterable) and not isinstance(made, dict) else None
            if rows is None:
                self._put(name, began, made, whole=True)
            else:
                found: list[Any] = []
                for row in rows:
                    found.append(row)
                    self._put(name, began, found, whole=False)
                self._put(name, began, found, whole=self.left_s > 0)
        except Exception as error:  # the other parts can still be measured
            traceback.print_exc()
            failed = {"failed": f"{type(error).__name__}: {error}"[:500]}
            self._put(name, began, failed, whole=False)
        print(f"{name}: {time.perf_counter() - began:.0f} s, {self.left_s:.0f} s left", flush=True)

    def _put(self, name: str, began: float, result: Any, *, whole: bool) -> None:
        now = time.perf_counter()
        self.parts[name] = {
            "seconds": now - began,
            "at_s": now - self._began,  # since this call began
            "whole": whole,
            "result": result,
        }
        self.write()

    def write(self) -> None:
        """Replaces both files by new ones that are whole."""
        document = {
            "key": self._key,
            "parts": self.parts,
            "predictions": [prediction.to_json() for prediction in self._judge(self.parts)],
            "not_reached": self.not_reached,
        }
        for name, text in (
            ("gpu_check.json", json.dumps(document, indent=2, default=str)),
            ("gpu_check.md", markdown(document)),
        ):
            write_whole(self.out / name, (text + "\n").encode())


def _whole(part: Mapping[str, Any]) -> bool:
    return bool(part.get("whole"))


def markdown(document: Mapping[str, Any]) -> str:
    """The report as tables: whole steps, predictions, checks, and the kernels that were timed."""
    parts = document["parts"]
    lines = ["# GPU check", ""]
    if document["key"].get("toy"):
        lines += ["Toy sizes: this rehearses the script, and no figure below means anything.", ""]
    for name, value in (parts.get("environment", {}).get("result") or {}).items():
        lines.append(f"- {name}: {value}")
    lines += ["", *_steps(parts), "", *_predictions(document["predictions"]), ""]
    numerics = parts.get("numerics", {}).get("result") or {}
    for row in numerics.get("rows", []):
        lines.append(f"- {'ok' if row['ok'] else 'WRONG'}: {row['check']}, {row['error']}")
    columns = {
        "attention": ("depth", "window", "backend", "documents", "ms", "reason", "chosen"),
        "products": ("depth", "map", "which", "kind", "ms", "tflops", "speed", "reason"),
    }
    for kind, names in columns.items():
        rows = [
            row
            for name, part in parts.items()
            if name.startswith(kind) and isinstance(part["result"], list)
            for row in part["result"]
        ]
        lines += ["", *_table(rows, names)] if rows else []
    if document["not_reached"]:
        left = ", ".join(document["not_reached"])
        lines += ["", f"Not reached in time: {left}. Run the same command again for these."]
    return "\n".join(lines)


def _steps(parts: Mapping[str, Any]) -> list[str]:
    lines = ["| steps of | tokens/s | against baseline | MFU (nanochat's) | MFU (causal) |"
             " peak GiB | plan GiB | last loss | held-out | prepared in |",
             "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|"]  # fmt: skip
    for name, part in parts.items():
        row = part["result"]
        if not name.startswith("d") or not isinstance(row, dict):
            continue
        base = (parts.get(f"{name.split()[0]} baseline", {}).get("result") or {}).get(
            "tokens_per_s"
        )
        if not row.get("tokens_per_s"):
            lines.append(f"| {name} | {row.get('reason') or row.get('failed')} |" + " |" * 8)
            continue
        ratio = f"{row['tokens_per_s'] / base:.2f}" if base else "-"
        shares = [f"{row[k]:.1%}" if row.get(k) else "-" for k in ("mfu_nanochat", "mfu_causal")]
        sizes = [
            f"{row[k] / 2**30:.2f}" if row[k] else "-" for k in ("peak_bytes", "planned_bytes")
        ]
        cells = [
            f"{row['tokens_per_s']:,.0f}",
            ratio,
            *shares,
            *sizes,
            f"{row['loss_last']:.4f}",
            f"{row['made_bpb']:.4f}",
            f"{row['prepare_s']:.0f} s",
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def _predictions(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    lines = ["| prediction | predicted | measured here | |", "|---|---|--:|---|"]
    for row in rows:
        measured = "" if row["measured"] is None else f"{row['measured']:,.4g}"
        lines.append(f"| {row['about']} | {row['predicted']} | {measured} | {row['verdict']} |")
    return lines


def _table(rows: Iterable[Mapping[str, Any]], columns: tuple[str, ...]) -> list[str]:
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for row in rows:
        cells = [f"{v:.3f}" if isinstance(v, float) else str(v) for v in (row[c] for c in columns)]
        lines.append("| " + " | ".join(cells) + " |")
    return lines
