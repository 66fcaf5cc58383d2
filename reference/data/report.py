"""`data report`: one HTML page about a corpus, from its manifest and a look at its shards.

The page carries all it needs (styles, drawings as SVG), follows the reader's light or dark setting
and escapes every text it shows: documents are hostile input.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from reference.data.manifest import read_manifest, whole_manifest
from reference.files import write_whole
from reference.pages import render

_PAGE = Path(__file__).with_name("report.html.jinja")
SAMPLE_BYTES = 20_000_000  # of text tokenized for the counts by domain
_STEPS = {
    "read": "empty, too long or unreadable",
    "language": "other languages",
    "gopher_quality": "Gopher quality rules",
    "fineweb": "FineWeb rules",
    "c4": "C4 rules",
    "gopher_repetition": "Gopher repetition rules",
    "quality": "low quality score",
    "overlap": "overlap with evaluation sets",
    "exact duplicate": "exact duplicates",
    "near duplicate": "near-duplicates",
    "not chosen": "left out by the mixture",
}
# The rules' own reasons in words; one that is not here is shown as it is.
_REASONS = {
    "gopher_short_doc": "too few words",
    "gopher_long_doc": "too many words",
    "gopher_below_avg_threshold": "words too short on average",
    "gopher_above_avg_threshold": "words too long on average",
    "gopher_too_many_hashes": "too many # signs",
    "gopher_too_many_ellipsis": "too many ellipses",
    "gopher_too_many_bullets": "too many lines are bullets",
    "gopher_too_many_end_ellipsis": "too many lines end in an ellipsis",
    "gopher_below_alpha_threshold": "too many words without a letter",
    "gopher_enough_stop_words": "too few of the commonest words",
    "line_punct_ratio": "too few lines end in punctuation",
    "short_line_ratio": "too many short lines",
    "char_dup_ratio": "too much text in repeated lines",
    "list_ratio": "too many line breaks for its words",
    "dup_para_frac": "too many repeated paragraphs",
    "dup_para_char_frac": "too much text in repeated paragraphs",
    "dup_line_frac": "too many repeated lines",
    "dup_line_char_frac": "too much text in repeated lines",
    "lorem_ipsum": "placeholder text",
    "curly_bracket": "curly brackets",
    "too_few_sentences": "too few sentences",
    "too_large": "longer than allowed",
    "invalid_utf8": "no UTF-8",
    "low score": "below the cut",
}
_SPLITS = ("train", "anneal", "validation")


def write_report(corpus: Path, target: Path, tokenizer: Path | None = None) -> None:
    """Writes the page about the corpus in `corpus` to `target`.

    Args:
        tokenizer: Folder of a saved tokenizer, for token counts and compression.

    Raises:
        TrainerError: No finished corpus, or no tokenizer there.
    """
    manifest = read_manifest(corpus)
    with whole_manifest(corpus):
        page = _page(corpus, manifest, tokenizer)
    write_whole(target, page)


def _page(corpus: Path, manifest: dict[str, Any], tokenizer: Path | None) -> bytes:
    tokens = count_tokens(corpus, manifest, tokenizer) if tokenizer else None
    filters = {
        "number": number,
        "size": size,
        "short_size": short_size,
        "share": share,
        "documents": documents,
    }
    return render(_PAGE, filters, **view(manifest, tokens))


def view(manifest: dict[str, Any], tokens: dict[str, Any] | None) -> dict[str, Any]:
    """What the template shows."""
    sources = [_source(name, entry) for name, entry in manifest["sources"].items()]
    read = sum(source["documents"] for source in sources)
    flow = _flow(sources)
    kept = {split: sum(s["placed"].get(split, [0, 0])[0] for s in sources) for split in _SPLITS}
    text = {
        split: sum(shard["text_bytes"] for shard in manifest["shards"] if shard["split"] == split)
        for split in _SPLITS
    }
    lengths: dict[int, int] = {}
    for entry in manifest["sources"].values():
        for exponent, count in entry["lengths"].items():
            lengths[int(exponent)] = lengths.get(int(exponent), 0) + count
    removed = [
        {
            "step": name.partition("/")[0],
            "key": name.partition("/")[2],
            "reason": reason(name.partition("/")[2]),
            **entry,
        }
        for name, entry in manifest["removed"].items()
    ]
    removed.sort(key=lambda entry: -entry["documents"])
    benchmarks = [
        {**benchmark, **{"documents": 0, "removed": 0, "hit": 0}, **_hit(manifest, benchmark)}
        for benchmark in manifest["models"].get("benchmarks", [])
    ]
    return {
        "manifest": manifest,
        "sources": sources,
        "documents": read,
        "read_bytes": sum(source["bytes"] for source in sources),
        "kept": kept,
        "text": text,
        "flow": flow,
        "step_names": _STEPS,
        "lengths": bars([(2**e, lengths.get(e, 0)) for e in _range(lengths)]),
        "removed": removed,
        "benchmarks": sorted(benchmarks, key=lambda entry: (-entry["documents"], entry["name"])),
        "similarity": bars(_similarities(manifest)),
        "domains": _domains(manifest),
        "languages": _languages(manifest),
        "tokens": tokens,
        "steps": _speeds(manifest),
    }


def _source(name: str, entry: dict[str, Any]) -> dict[str, Any]:
    placed = entry.get("placed", {})
    removed = dict(entry["removed"])
    corpus = sum(count for count, _ in placed.values())
    if "left_out" in entry:
        removed["not chosen"] = sum(entry["left_out"].values())
    total = max(1, sum(removed.values()) + corpus)
    segments = [(split, placed.get(split, [0, 0])[0] / total) for split in _SPLITS]
    segments += [(step, removed[step] / total) for step in _STEPS if removed.get(step)]
    counts = np.asarray(entry["scores"], dtype=float)
    middle = (np.arange(len(counts)) + 0.5) / max(1, len(counts))
    return {
        "name": name,
        "documents": entry["documents"],
        "bytes": entry["bytes"],
        "removed": removed,
        "placed": placed,
        "kept": corpus,
        "segments": [(kind, value) for kind, value in segments if value],
        "scores": ridge(counts) if counts.sum() else "",
        "mean_score": float((counts * middle).sum() / counts.sum()) if counts.sum() else None,
    }


def _flow(sources: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """How many documents are left behind each step, as shares of those read."""
    left = total = max(1, sum(source["documents"] for source in sources))
    rows = []
    for step, label in _STEPS.items():
        gone = sum(source["removed"].get(step, 0) for source in sources)
        if gone:
            left -= gone
            rows.append(
                {
                    "step": step,
                    "label": label,
                    "gone": gone,
                    "left": left,
                    "share": left / total,
                    "lost": gone / total,
                }
            )
    return rows


def reason(key: str) -> str:
    """A rule's own reason in words."""
    if found := re.fullmatch(r"top_(\d+)_gram", key):
        return f"one run of {found[1]} words too often"
    if found := re.fullmatch(r"duplicated_(\d+)_n_grams", key):
        return f"too much text in repeated runs of {found[1]} words"
    return _REASONS.get(key, key)


def _similarities(manifest: dict[str, Any]) -> list[tuple[float, int]]:
    """Removed near-duplicates by similarity in steps of 0.02, empty steps included."""
    counts = {int(step): count for step, count in manifest["near"]["similarity"].items()}
    first = min([*counts, int(manifest["spec"]["dedup"]["jaccard"] * 50 + 1e-9)])
    return [(step / 50, counts.get(step, 0)) for step in range(first, 51)] if counts else []


def _range(lengths: dict[int, int]) -> range:
    return range(min(lengths), max(lengths) + 1) if lengths else range(0)


def bars(points: Sequence[tuple[float, int]]) -> list[dict[str, float]]:
    """Points with heights from 0 to 1."""
    highest = max((count for _, count in points), default=0) or 1
    return [{"at": at, "count": count, "height": count / highest} for at, count in points]


def ridge(counts: np.ndarray) -> str:
    """An SVG path, 200 wide and 36 high, of a smoothed histogram."""
    smooth = np.convolve(counts, [0.25, 0.5, 0.25], mode="same")
    heights = 36 - 34 * np.sqrt(smooth / smooth.max())
    step = 200 / (len(counts) - 1)
    points = " ".join(f"L{index * step:.1f},{height:.1f}" for index, height in enumerate(heights))
    return f"M0,36 {points} L200,36 Z"


def _hit(manifest: dict[str, Any], benchmark: dict[str, Any]) -> dict[str, Any]:
    found = manifest["overlaps"].get(benchmark["name"])
    if found is None:
        return {}
    return {"documents": found["documents"], "removed": found["removed"], "hit": found["items"]}


def _domains(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    found: dict[str, dict[str, int]] = {}
    for split, _, domain, _, size_ in manifest["placed"]:
        entry = found.setdefault(domain, dict.fromkeys(_SPLITS, 0))
        entry[split] += size_
    totals = {split: max(1, sum(entry[split] for entry in found.values())) for split in _SPLITS}
    rows = [
        {
            "name": domain,
            "bytes": entry,
            "shares": {split: entry[split] / totals[split] for split in _SPLITS},
            "rate": manifest["mix"]["rates"].get(domain),
        }
        for domain, entry in found.items()
    ]
    return sorted(rows, key=lambda row: -row["bytes"]["train"])


def _languages(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    found: dict[str, int] = {}
    for entry in manifest["sources"].values():
        for code, count in entry["languages"].items():
            found[code] = found.get(code, 0) + count
    ordered = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    total = max(1, sum(found.values()))
    return [{"code": code, "count": n, "share": n / total} for code, n in ordered[:6]]


def _speeds(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    total = sum(entry["seconds"] for entry in manifest["steps"].values()) or 1.0
    rows = [
        {
            "name": name,
            "seconds": entry["seconds"],
            "share": entry["seconds"] / total,
            "documents_s": entry["documents"] / max(entry["seconds"], 1e-9),
            "mb_s": entry["bytes"] / 1e6 / max(entry["seconds"], 1e-9),
        }
        for name, entry in manifest["steps"].items()
    ]
    return sorted(rows, key=lambda row: -row["seconds"])


def count_tokens(corpus: Path, manifest: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Tokens and bytes a token by domain, from the first shards; totals scaled up by bytes."""
    from reference.tokenizer.bpe import Tokenizer

    tokenizer = Tokenizer.load(folder)
    by_domain: dict[str, list[int]] = {}
    seen = 0
    for shard in manifest["shards"]:
        if shard["split"] == "validation" or seen >= SAMPLE_BYTES:
            continue
        with pq.ParquetFile(corpus / shard["path"]) as file:
            for batch in file.iter_batches(256, columns=["text", "domain"]):
                texts = batch.column(0).to_pylist()
                for text, domain, ids in zip(
                    texts, batch.column(1).to_pylist(), tokenizer.encode_arrays(texts), strict=True
                ):
                    entry = by_domain.setdefault(domain, [0, 0])
                    entry[0] += len(text.encode())
                    entry[1] += len(ids)
                    seen += len(text.encode())
                if seen >= SAMPLE_BYTES:
                    break
    rates = {name: entry[0] / max(1, entry[1]) for name, entry in by_domain.items()}
    total = sum(entry[0] for entry in by_domain.values())
    rate = total / max(1, sum(entry[1] for entry in by_domain.values()))
    return {
        "digest": tokenizer.digest,
        "vocab_size": tokenizer.vocab_size,
        "bytes_per_token": rate,
        "by_domain": dict(sorted(rates.items(), key=lambda item: item[1])),
        "sampled_bytes": total,
        "splits": {
            split: sum(s["text_bytes"] for s in manifest["shards"] if s["split"] == split) / rate
            for split in _SPLITS
        },
    }


def number(value: float) -> str:
    """1234567 -> 1,234,567."""
    return f"{value:,.0f}"


def size(value: float) -> str:
    """Bytes in the unit that reads best."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def short_size(value: float) -> str:
    """Bytes without decimals, for the axis of a drawing."""
    return size(value).replace(".0 ", " ") if value < 10_000 else re.sub(r"\.\d", "", size(value))


def documents(count: int) -> str:
    """1 -> "1 document"."""
    return f"{number(count)} document{'' if count == 1 else 's'}"


def share(value: float) -> str:
    """0.123 -> 12.3%."""
    return f"{value:.1%}" if value < 0.9995 else "100%"
