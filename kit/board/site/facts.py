"""A run's machine and its smaller figures, as rows of name and value."""

from __future__ import annotations

from typing import Any

from kit.board.site.text import clean, compact, score, shown, size
from kit.timing import duration

Document = dict[str, Any]


def machine(result: Document | None) -> list[tuple[str, str, str]]:
    """What was measured before and after: fact, before, after."""
    if result is None:
        return []
    before, after = (result["hardware"][when] or {} for when in ("before", "after"))
    rows = []
    for title, path, form in _FACTS:
        pair = [_dig(side, path) for side in (before, after)]
        if pair != [None, None]:
            first, second = ("\N{EN DASH}" if value is None else form(value) for value in pair)
            rows.append((title, first, second if second != first else "same"))
    reasons = {**(before.get("reasons") or {}), **(after.get("reasons") or {})}
    return rows + [(clean(name), f"not read: {reason}", "") for name, reason in reasons.items()]


def _dig(document: Any, path: str) -> Any:
    for key in path.split("."):
        if isinstance(document, list):
            document = document[0] if document else None
        document = document.get(key) if isinstance(document, dict) else None
    return document


_FACTS: tuple[tuple[str, str, Any], ...] = (
    ("GPU", "gpus.name", shown),
    ("Class, by measurement", "class.name", shown),
    ("PCI id", "gpus.pci_id", shown),
    ("Power limit", "gpus.power_limit_w", lambda v: f"{shown(v)} W"),
    ("GPU memory", "gpus.memory_bytes", size),
    ("Driver", "driver", shown),
    ("BF16 matmul", "probes.gpu.bf16_tflops", lambda v: f"{shown(v)} TFLOP/s"),
    ("FP16 accumulation ratio", "probes.gpu.fp16_accumulation_ratio", shown),
    ("FP64", "probes.gpu.fp64_tflops", lambda v: f"{shown(v)} TFLOP/s"),
    ("L2 knee", "probes.gpu.l2_knee_bytes", size),
    ("GPU memory copy", "probes.gpu.copy_gb_s", lambda v: f"{shown(v)} GB/s"),
    ("Streaming multiprocessors", "probes.gpu.sm_count", shown),
    ("CPU", "host.cpu_model", shown),
    ("Cores allowed", "host.cores_allowed", shown),
    ("Memory", "host.ram_bytes", size),
    ("System", "host.system", shown),
    ("Kernel", "host.kernel", shown),
    ("Virtualisation", "host.virtualisation", shown),
    ("CPU matmul", "probes.cpu.matmul_gflops", lambda v: f"{shown(v)} GFLOP/s"),
    ("Memory copy", "probes.cpu.copy_gb_s", lambda v: f"{shown(v)} GB/s"),
)


def run_facts(result: Document | None) -> list[tuple[str, str]]:
    """Everything else a reader may look up."""
    if result is None:
        return []
    training, timing, quality = result["training"], result["timing"], result["quality"]
    peak, chat, claims = training["peak_memory_bytes"], quality["chat"], result["claims"]
    pairs: list[tuple[str, str | None]] = [
        ("Run", result["runs"]["id"]),
        ("Started", timing["started_at"]),
        ("Status", " ".join(filter(None, (claims["status"], claims["reason"])))),
        ("Message", claims["message"]),
        ("Parameters", _maybe(training["parameters"], shown)),
        ("Tokens", _maybe(training["tokens"], shown)),
        ("Steps", _maybe(training["steps"], shown)),
        ("FLOPs", _maybe(training["flops"], compact)),
        ("First and last loss",
         f"{shown(training['first_loss'])} and {shown(training['final_loss'])}"),
        ("Peak memory", _maybe(peak, size)),
        ("Chat score", None if chat is None else _maybe(chat["value"], score)),
        ("Seconds by nanochat's count", _maybe(timing["nanochat_s"], shown)),
        ("Resumes", f"{timing['resumes']}, {duration(timing['downtime_s'])} down"),
        ("Seed", f"{result['seed']['value']}, from {result['seed']['source']}"),
        ("Kit", result["kit"]["version"]),
        ("Image", result["image"]["digest"] or f"none: {result['image']['reason']}"),
        ("Signed with", result["submitter"]["public_key"]),
        ("Log", f"{result['log']['count']:,} events, head {result['log']['head']}"),
        ("Recipe digest", result["recipe"]["digest"]),
    ]  # fmt: skip
    return [(name, value) for name, value in pairs if value]


def _maybe(value: Any, form: Any) -> str | None:
    return None if value is None else form(value)
