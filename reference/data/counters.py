"""What the parts of a build did, added up: one part at a time, so that memory does not grow."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from reference.errors import TrainerError

SAMPLES = 6  # removed documents kept for the report, a reason


class Counters:
    """Adds up what `process_part` says, part by part in the order of the inputs."""

    def __init__(self) -> None:
        self.kept = 0
        self.inputs: list[dict[str, Any]] = []
        self.problems: list[str] = []
        self._removed: dict[str, Any] = {}
        self._overlaps: dict[str, Any] = {}
        self._steps: dict[str, Any] = {}
        self._sources: dict[str, Any] = {}

    def add(self, summary: dict[str, Any]) -> None:
        self.kept += summary["kept"]
        self.inputs.append(_input(summary))
        self.problems += summary["problems"]
        self._add_removed(summary)
        self._add_overlaps(summary)
        self._add_steps(summary)
        self._add_source(summary)

    @property
    def removed(self) -> dict[str, Any]:
        """By step and reason: documents, bytes, documents by source, samples."""
        return dict(sorted(self._removed.items()))

    @property
    def overlaps(self) -> dict[str, Any]:
        """By evaluation set: documents that overlap, those removed, items they overlap with."""
        return {
            task: {**entry, "items": len(entry["items"])}
            for task, entry in sorted(self._overlaps.items())
        }

    @property
    def steps(self) -> dict[str, Any]:
        """By step: seconds of all workers, documents and bytes that reached it."""
        return self._steps

    def sources(self, selection: dict[str, Any]) -> dict[str, Any]:
        """Per source: what was read, what each step took away, what is in the corpus.

        Args:
            selection: The facts of `index.facts`: duplicates, left_out, distinct and placed.

        Raises:
            TrainerError: The documents read are not those removed, left out or in the corpus.
        """
        found = {
            name: {**entry, "removed": dict(entry["removed"])}
            for name, entry in self._sources.items()
        }
        for source, why, count, _ in selection["duplicates"]:
            found[source]["removed"][f"{why} duplicate"] = count
        for source, why, count, _ in selection["left_out"]:
            found[source].setdefault("left_out", {})[why] = count
        for split, source, _, count, size in selection["placed"]:
            here = found[source].setdefault("placed", {}).setdefault(split, [0, 0])
            here[0] += count
            here[1] += size
        for name, entry in found.items():
            gone = sum(entry["removed"].values()) + sum(entry.get("left_out", {}).values())
            entry["distinct"] = int(selection["distinct"].get(name, 0))
            if entry["documents"] != gone + entry["distinct"]:
                raise TrainerError(
                    "internal",
                    f"source {name!r}: {entry['documents']} documents were read, {gone} removed or "
                    f"left out and {entry['distinct']} are in the corpus",
                    "The build lost documents: report it, with the spec.",
                )
        return found

    def _add_removed(self, summary: dict[str, Any]) -> None:
        for name, entry in summary["removed"].items():
            known = self._removed.setdefault(
                name, {"documents": 0, "bytes": 0, "sources": {}, "samples": []}
            )
            known["documents"] += entry["documents"]
            known["bytes"] += entry["bytes"]
            sources = known["sources"]
            sources[summary["source"]] = sources.get(summary["source"], 0) + entry["documents"]
            for sample in entry["samples"][: SAMPLES // 2]:  # not all of them from one part
                if len(known["samples"]) < SAMPLES:
                    known["samples"].append({"source": summary["source"], **sample})

    def _add_overlaps(self, summary: dict[str, Any]) -> None:
        for found in summary["overlaps"]:
            entry = self._overlaps.setdefault(
                found["task"], {"documents": 0, "removed": 0, "items": set()}
            )
            entry["documents"] += 1
            entry["removed"] += found["removed"]
            entry["items"].add(found["item"])

    def _add_steps(self, summary: dict[str, Any]) -> None:
        for step, seconds in summary["seconds"].items():
            entry = self._steps.setdefault(step, {"seconds": 0.0, "documents": 0, "bytes": 0})
            documents, size = summary["seen"].get(step, (summary["documents"], summary["bytes"]))
            entry["seconds"] = round(entry["seconds"] + seconds, 6)
            entry["documents"] += documents
            entry["bytes"] += size

    def _add_source(self, summary: dict[str, Any]) -> None:
        entry = self._sources.setdefault(
            summary["source"],
            {
                "documents": 0,
                "bytes": 0,
                "removed": Counter(),
                "languages": {},
                "lengths": {},
                "scores": [],
            },
        )
        entry["documents"] += summary["documents"]
        entry["bytes"] += summary["bytes"]
        for name, reason in summary["removed"].items():
            entry["removed"][name.partition("/")[0]] += reason["documents"]
        for field in ("languages", "lengths"):
            for key, count in summary[field].items():
                entry[field][key] = entry[field].get(key, 0) + count
        scores = entry["scores"] or [0] * len(summary["scores"])
        entry["scores"] = [a + b for a, b in zip(scores, summary["scores"], strict=True)]


def _input(summary: dict[str, Any]) -> dict[str, Any]:
    part = summary["part"]
    return {
        "source": summary["source"],
        "file": Path(part["file"]).name,
        "begin": part["begin"],
        "end": part["end"],
        "documents": summary["documents"],
        "bytes": summary["bytes"],
        "content": summary["content"],
    }
