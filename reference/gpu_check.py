"""Everything that only a GPU can show, in one command of at most ten minutes:

    python -m reference.gpu_check --out DIR

Needs no data, no network and no kit: numerics of every kernel against formulas, single kernels,
then whole training steps of d12 and d20 held to 24 GB: nanochat's own way (`baseline`) beside this
trainer with each of its kinds of factors. Parts run in the order of their worth and stop when the
time is up; what was not reached is named. DIR gets `gpu_check.json` and `gpu_check.md`, written
anew after every part.

`--device cpu` rehearses the same parts at toy sizes: it shows that the script runs, no figure of it
means anything.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from reference.bench.kernels import bench_attention, bench_matmuls, nanochat_config
from reference.bench.levers import measure
from reference.config.trainer import section_defaults
from reference.kernels.attention import FLEX, lacks
from reference.kernels.eight_bit import KINDS, multiply, product, quantize
from reference.kernels.matmul_trial import profiled_kernels
from reference.model.cost import count_flops, peak_flops
from reference.model.loss import full_cross_entropy, softcapped_cross_entropy
from reference.train.metrics import mfu

CAP_GIB = 24.0
SECONDS = 560.0
# Of each part, in seconds: it begins only when this much is left.
NEEDED_S = {"numerics": 20, "train": 45, "kernels": 30, "attention": 30}
# `[pretrain]` of the runs below: every default, except these.
PRETRAIN: dict[str, Any] = {
    **section_defaults("pretrain"),
    "num_steps": 1000, "total_batch_size": 131072, "device_batch_size": 0, "warmup_steps": 0,
    "matmul_until": 1.0, "vram_cap_gib": CAP_GIB,
}  # fmt: skip
# nanochat's own way: plain bf16, all logits at once, whatever windowed kernel PyTorch has.
BASELINE = {"matmul": "bf16", "fused_loss": False}
VARIANTS: dict[str, dict[str, Any]] = {
    "baseline": BASELINE,
    "ours, bf16": {},
    "ours, fp8": {"matmul": "fp8"},
    "ours, fastest": {"matmul": "fastest", "compile_optimizer": True},
    "ours, int8": {"matmul": "int8"},
    "ours, fp8 rows": {"matmul": "fp8_rowwise"},
}


def recipe_of(depth: int, changes: dict[str, Any], *, toy: bool) -> dict[str, Any]:
    """A recipe, as the trainer reads it, of nanochat's model of a depth."""
    config = nanochat_config(depth, seq_len=128 if toy else 2048)
    model = config.to_json()
    if toy:
        model.update(n_layer=2, n_embd=64, n_head=2, n_kv_head=2, short_window=64)
    vocabulary = 512 if toy else config.vocab_size
    pretrain = {**PRETRAIN, **changes}
    if toy:
        pretrain.update(total_batch_size=512, device_batch_size=2, compile="off")
    return {"model": model, "tokenizer": {"vocab_size": vocabulary}, "pretrain": pretrain}


def environment(device: torch.device) -> dict[str, Any]:
    """What the figures were measured on."""
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "device": str(device),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found.update(
            device=properties.name,
            capability=f"{properties.major}.{properties.minor}",
            memory_gib=properties.total_memory / 2**30,
            shared_memory_bytes=properties.shared_memory_per_block_optin,
            attention={
                name: lacks(name, device, torch.bfloat16) or "there"
                for name in ("cudnn", "varlen", *FLEX, "fa2", "fa3")
            },
        )
    return found


def check_products(device: torch.device, size: int) -> list[dict[str, Any]]:
    """Each kind's product against its rounded factors multiplied in fp64, and what kernel ran."""
    rows = []
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn((size, 2 * size), generator=generator).to(device) for _ in range(2))
    for kind in KINDS:
        for gradient in (False, True):
            row: dict[str, Any] = {"check": f"{kind}, {'gradient' if gradient else 'forward'}"}
            try:
                y = product(a, b, kind, torch.bfloat16, gradient=gradient)
                if kind == "bf16":
                    exact = a.bfloat16().double() @ b.bfloat16().double().T
                else:
                    factors = quantize(a, kind, gradient=gradient), quantize(b, kind)
                    exact = factors[0].dequantized().double() @ factors[1].dequantized().double().T
                row["error"] = float((y - exact).abs().max() / exact.abs().max())
                row["ok"] = row["error"] < 0.01
                if device.type == "cuda" and kind != "bf16":
                    names = profiled_kernels(
                        lambda f=factors, k=kind: multiply(*f, k, torch.bfloat16)
                    )
                    row["kernels"] = names[:4]
            except Exception as error:  # one kernel that is missing must not end the check
                row.update(ok=False, error=f"{type(error).__name__}: {error}"[:300])
            rows.append(row)
    return rows


def check_loss(device: torch.device, tokens: int, vocabulary: int) -> dict[str, Any]:
    """The chunked loss against the plain one, in fp32: value and both gradients."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn((tokens, 64), generator=generator).to(device)
    weight = (0.3 * torch.randn((vocabulary, 64), generator=generator)).to(device)
    targets = torch.randint(-1, vocabulary, (tokens,), generator=generator).to(device)
    results = []
    for formula in (softcapped_cross_entropy, full_cross_entropy):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        loss = formula(h, w, targets, vocab_size=vocabulary, softcap=15.0)
        results.append((loss.detach(), *torch.autograd.grad(loss, (h, w))))
    errors = [
        float((mine - plain).abs().max() / plain.abs().max())
        for mine, plain in zip(*results, strict=True)
    ]
    return {"check": "chunked loss", "error": max(errors), "ok": max(errors) < 1e-3}


class Report:
    """Collects parts, keeps the files up to date, and knows how much time is left."""

    def __init__(self, out: Path, seconds: float) -> None:
        self.out, self._ends = out, time.perf_counter() + seconds
        self.parts: dict[str, Any] = {}
        self.not_reached: list[str] = []
        out.mkdir(parents=True, exist_ok=True)

    @property
    def left_s(self) -> float:
        return self._ends - time.perf_counter()

    def part(self, name: str, needed_s: float, make: Callable[[], Any]) -> None:
        """Runs a part if its time is left; its failure is a row of the report, not the end."""
        if self.left_s < needed_s:
            self.not_reached.append(name)
        else:
            began = time.perf_counter()
            try:
                result = make()
            except Exception as error:  # every part stands for itself
                traceback.print_exc()
                result = {"failed": f"{type(error).__name__}: {error}"[:500]}
            self.parts[name] = {"seconds": time.perf_counter() - began, "result": result}
            print(f"{name}: {time.perf_counter() - began:.0f} s, {self.left_s:.0f} s left")
        self.write()

    def write(self) -> None:
        document = {"parts": self.parts, "not_reached": self.not_reached}
        for name, text in (
            ("gpu_check.json", json.dumps(document, indent=2, default=str)),
            ("gpu_check.md", markdown(document)),
        ):
            temporary = self.out / f"{name}.tmp"
            temporary.write_text(text + "\n")
            temporary.replace(self.out / name)


def train(depth: int, name: str, device: torch.device, *, steps: int, toy: bool) -> dict[str, Any]:
    """One variant's figures, with both counts of MFU."""
    recipe = recipe_of(depth, VARIANTS[name], toy=toy)
    row = measure(recipe, device=str(device), steps=steps)
    if row.get("tokens_per_s") and device.type == "cuda":
        flops, peak = count_flops(nanochat_config(depth)), peak_flops(torch.cuda.get_device_name())
        row["mfu_nanochat"] = mfu(flops.nanochat, row["tokens_per_s"], peak)
        row["mfu_causal"] = mfu(flops.causal, row["tokens_per_s"], peak)
    return row


def markdown(document: dict[str, Any]) -> str:
    """The report as tables: one of whole steps, one of checks, the kernels that were timed."""
    parts = document["parts"]
    lines = ["# GPU check", ""]
    for name, value in (parts.get("environment", {}).get("result") or {}).items():
        lines.append(f"- {name}: {value}")
    lines += ["", "| steps of | tokens/s | against baseline | MFU (nanochat's) | MFU (causal) |"
              " peak GiB | plan GiB | last loss | held-out | prepared in |",
              "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|"]  # fmt: skip
    for name, part in parts.items():
        row = part["result"]
        if not name.startswith("d") or not isinstance(row, dict):
            continue
        base = parts.get(f"{name.split()[0]} baseline", {}).get("result", {}).get("tokens_per_s")
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
    for row in (parts.get("numerics", {}).get("result") or {}).get("rows", []):
        lines.append(f"- {'ok' if row['ok'] else 'WRONG'}: {row['check']}, {row['error']}")
    for name, columns in (
        ("attention", ("depth", "window", "backend", "documents", "ms", "reason", "chosen")),
        ("kernels", ("depth", "map", "which", "kind", "ms", "tflops", "speed", "reason")),
    ):
        rows = parts.get(name, {}).get("result")
        if isinstance(rows, list) and rows:
            lines += ["", "| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
            for row in rows:
                cells = [f"{v:.3f}" if isinstance(v, float) else str(v)
                         for v in (row[c] for c in columns)]  # fmt: skip
                lines.append("| " + " | ".join(cells) + " |")
    if document["not_reached"]:
        lines += ["", "Not reached in time: " + ", ".join(document["not_reached"])]
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """Runs the parts; exits 1 when a check of the numerics failed."""
    parser = argparse.ArgumentParser(prog="reference.gpu_check", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "gpu_check")))
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options = parser.parse_args(argv)
    toy = options.device == "cpu"
    if not toy and not torch.cuda.is_available():
        print("no GPU can be seen; --device cpu rehearses the script", file=sys.stderr)
        return 2
    device = torch.device(options.device)
    if not toy:
        torch.set_float32_matmul_precision("high")
    report = Report(options.out, options.seconds)
    tokens, depths = (64, [2]) if toy else (8192, [20, 12])
    shape = {"seq_len": 256 if toy else 2048, "batch": 1 if toy else 4}

    def numerics() -> dict[str, Any]:
        rows = check_products(device, 64 if toy else 1024)
        rows.append(check_loss(device, 128 if toy else 4096, 512 if toy else 32768))
        return {"rows": rows, "ok": all(row["ok"] for row in rows)}

    def attention(documents: bool) -> list[dict[str, Any]]:
        return list(
            bench_attention(
                depths[:1], device=device, documents=documents,
                enough=lambda: report.left_s < 5, **shape,
            )
        )  # fmt: skip

    def steps_of(depth: int, name: str) -> None:
        def make() -> dict[str, Any]:
            return train(depth, name, device, steps=options.steps, toy=toy)

        report.part(f"d{depth} {name}", 1 if toy else NEEDED_S["train"], make)

    report.part("environment", 0, lambda: environment(device))
    report.part("numerics", 0 if toy else NEEDED_S["numerics"], numerics)
    for name in ("baseline", "ours, bf16", "ours, fp8"):
        steps_of(12, name)
    for name in ("baseline", "ours, bf16", "ours, fp8", "ours, fastest"):
        steps_of(20, name)
    needed = 0 if toy else NEEDED_S["attention"]
    report.part("attention", needed, lambda: attention(False))
    for name in ("ours, int8", "ours, fp8 rows"):
        steps_of(20, name)
    report.part(
        "kernels",
        0 if toy else NEEDED_S["kernels"],
        lambda: list(
            bench_matmuls(
                depths, tokens=tokens, device=device, enough=lambda: report.left_s < 5
            )
        ),
    )  # fmt: skip
    report.part("attention, documents", needed, lambda: attention(True))
    print((report.out / "gpu_check.md").read_text())
    return 0 if report.parts.get("numerics", {}).get("result", {}).get("ok") else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
