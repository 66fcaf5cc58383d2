"""Everything that only a GPU can show, in one command of at most ten minutes:

    python -m reference.gpu_check --out DIR

Needs no data, no network and no kit: numerics of every kernel against formulas, single kernels,
then whole training steps of d12 and d20 held to 24 GB: nanochat's own way (`baseline`) beside this
trainer with each of its kinds of factors. Parts run in the order of their worth and stop when the
time is up; the same command again does what was not reached. DIR gets `gpu_check.json` and
`gpu_check.md`, replaced after every figure, with a table of what was predicted and whether it held.

`--device cpu` rehearses the same parts at toy sizes: it shows that the script runs, no figure of it
means anything.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch

from reference.bench.gpu_predictions import judged
from reference.bench.gpu_report import OtherReport, Report
from reference.bench.kernels import bench_attention, bench_matmuls, nanochat_config
from reference.bench.levers import measure
from reference.config.trainer import section_defaults
from reference.kernels.attention import FLEX, Backend, lacks
from reference.kernels.eight_bit import KINDS, multiply, product, quantize
from reference.kernels.int8_rounding import Producer, block_mm, inverse_rms, round_both
from reference.kernels.matmul_trial import profiled_kernels
from reference.model.cost import count_flops, peak_flops
from reference.model.loss import full_cross_entropy, softcapped_cross_entropy
from reference.train.metrics import mfu

CAP_GIB = 24.0
SECONDS = 560.0
# Of each part, in seconds: it begins only when this much is left.
NEEDED_S = {"numerics": 20, "train": 45, "products": 30, "attention": 30}
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
    "ours, int8": {"matmul": "int8", "matmul_layers": ["attention", "mlp", "head"]},
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
    backends: tuple[Backend, ...] = ("cudnn", "varlen", *FLEX, "fa2", "fa3")
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found.update(
            device=properties.name,
            capability=f"{properties.major}.{properties.minor}",
            memory_gib=properties.total_memory / 2**30,
            shared_memory_bytes=properties.shared_memory_per_block_optin,  # type: ignore[attr-defined]
            attention={name: lacks(name, device, torch.bfloat16) or "there" for name in backends},
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
                    names = profiled_kernels(partial(multiply, *factors, kind, torch.bfloat16))
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


def check_int8(device: torch.device, tokens: int, channels: int) -> list[dict[str, Any]]:
    """The int8 kernels against the same arithmetic on the CPU, bit by bit; the int8 loss's error.

    `error` is the share of values that differ; for the loss that of its gradients' norms.
    """
    generator = torch.Generator().manual_seed(0)
    x, gate = (torch.randn((tokens, channels), generator=generator).bfloat16() for _ in range(2))
    x[3] = 0.0
    others: dict[str, Any] = {"norm": inverse_rms(x), "relu2_backward": gate}
    rows = []
    for producer in get_args(Producer):
        other = others.get(producer)
        plain = round_both(x, producer, other)
        found = round_both(x.to(device), producer, None if other is None else other.to(device))
        products = [
            block_mm(f.columns, f.columns, f.column_scale, f.column_scale) for f in (plain, found)
        ]
        pairs = [*zip(plain, found, strict=True), (products[0], products[1])]
        different = sum(int((a != b.cpu()).sum()) for a, b in pairs)
        share = different / sum(a.numel() for a, _ in pairs)
        rows.append({"check": f"int8, {producer}", "error": share, "ok": share == 0})
    hidden = torch.randn((tokens, 64), generator=generator).to(device)
    weight = (0.3 * torch.randn((512, 64), generator=generator)).to(device)
    targets = torch.randint(-1, 512, (tokens,), generator=generator).to(device)
    results = []
    for rounded in (round_both(weight), None):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        loss = softcapped_cross_entropy(h, w, targets, vocab_size=512, softcap=15.0, int8=rounded)
        results.append(torch.autograd.grad(loss, (h, w)))
    error = max(float((a - b).norm() / b.norm()) for a, b in zip(*results, strict=True))
    return [*rows, {"check": "int8 loss", "error": error, "ok": error < 0.02}]


def kernels_of(found: Any) -> tuple[str, str]:
    """Attention kernels for whole and narrower windows, as the report's trial chose them."""
    chosen = {
        row["window"]: row["backend"]
        for row in (found if isinstance(found, list) else ())
        if row["chosen"] and not row["documents"]
    }
    if not chosen:
        return "auto", "auto"
    return chosen[max(chosen)], chosen[min(chosen)]


def code_digest() -> str:
    """Of this package's source files: figures of other code are not taken over."""
    found = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


class Check:
    """The parts at the sizes of a device; each is a method that returns or yields figures."""

    def __init__(self, device: torch.device, *, steps: int, toy: bool) -> None:
        self.device, self.steps, self.toy = device, steps, toy
        self.report: Report | None = None

    def numerics(self) -> dict[str, Any]:
        rows = check_products(self.device, 64 if self.toy else 1024)
        rows += check_int8(self.device, 300 if self.toy else 4096, 96 if self.toy else 1280)
        rows.append(check_loss(self.device, 128 if self.toy else 4096, 512 if self.toy else 32768))
        return {"rows": rows, "ok": all(row["ok"] for row in rows)}

    def attention(self, documents: bool) -> Iterator[dict[str, Any]]:
        return bench_attention(
            [2] if self.toy else [20],
            seq_len=256 if self.toy else 2048,
            batch=1 if self.toy else 4,
            device=self.device,
            documents=documents,
            enough=self._enough,
        )

    def products(self, depth: int, map_: str) -> Iterator[dict[str, Any]]:
        tokens, depth = (64, 2) if self.toy else (8192, depth)
        return bench_matmuls(
            [depth], tokens=tokens, device=self.device, maps=(map_,), enough=self._enough
        )

    def train(self, depth: int, name: str) -> dict[str, Any]:
        """One variant's figures, with both counts of MFU."""
        assert self.report is not None
        recipe = recipe_of(depth, VARIANTS[name], toy=self.toy)
        attention = kernels_of(self.report.result("attention"))
        row = measure(
            recipe,
            device=str(self.device),
            steps=self.steps,
            attention=None if recipe["pretrain"]["matmul"] == "fastest" else attention,
        )
        if row.get("tokens_per_s") and self.device.type == "cuda":
            flops = count_flops(nanochat_config(depth))
            peak = peak_flops(torch.cuda.get_device_name())
            row["mfu_nanochat"] = mfu(flops.nanochat, row["tokens_per_s"], peak)
            row["mfu_causal"] = mfu(flops.causal, row["tokens_per_s"], peak)
        return row

    def _enough(self) -> bool:
        return self.report is not None and self.report.left_s < 5


# By worth: is anything wrong, how fast is a step of `reference`, what do 8-bit products bring.
PARTS: tuple[tuple[str, str, int, str], ...] = (
    ("numerics", "numerics", 0, ""),
    ("attention", "attention", 0, ""),
    ("d20 ours, bf16", "train", 20, "ours, bf16"),
    ("products d20 up", "products", 20, "up"),
    ("d20 ours, int8", "train", 20, "ours, int8"),
    ("d20 ours, fp8", "train", 20, "ours, fp8"),
    ("d20 baseline", "train", 20, "baseline"),
    ("d20 ours, fastest", "train", 20, "ours, fastest"),
    ("d12 ours, bf16", "train", 12, "ours, bf16"),
    ("d12 baseline", "train", 12, "baseline"),
    ("d12 ours, fp8", "train", 12, "ours, fp8"),
    ("products d20 down", "products", 20, "down"),
    ("products d20 q k v proj", "products", 20, "q k v proj"),
    ("d20 ours, fp8 rows", "train", 20, "ours, fp8 rows"),
    ("products d12 up", "products", 12, "up"),
    ("products d12 down", "products", 12, "down"),
    ("products d12 q k v proj", "products", 12, "q k v proj"),
    ("attention, documents", "attention", 0, "documents"),
)


def main(argv: list[str]) -> int:
    """Runs the parts; exits 1 when a check of the numerics failed."""
    parser = argparse.ArgumentParser(prog="reference.gpu_check", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "gpu_check")))
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--toy", action="store_true", help="toy sizes, as always on a CPU")
    options = parser.parse_args(argv)
    toy = options.toy or options.device == "cpu"
    if options.device == "cuda":
        if not torch.cuda.is_available():
            print("no GPU can be seen; --device cpu rehearses the script", file=sys.stderr)
            return 2
        torch.set_float32_matmul_precision("high")
    device = torch.device(options.device)
    check = Check(device, steps=options.steps, toy=toy)
    found = environment(device)
    key = {**found, "code": code_digest(), "steps": options.steps, "toy": toy}
    recipes = {
        name: recipe_of(depth, VARIANTS[variant], toy=toy)
        for name, kind, depth, variant in PARTS
        if kind == "train"
    }
    try:
        report = Report(
            options.out,
            options.seconds,
            json.loads(json.dumps(key, default=str)),
            lambda parts: judged(parts, recipes),
        )
    except OtherReport as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    check.report = report
    report.part("environment", 0, lambda: found)
    for name, kind, depth, which in PARTS:
        makers: dict[str, Callable[[], Any]] = {
            "numerics": check.numerics,
            "attention": partial(check.attention, bool(which)),
            "products": partial(check.products, depth, which),
            "train": partial(check.train, depth, which),
        }
        report.part(name, 1 if toy else NEEDED_S[kind], makers[kind])
    report.write()
    print((report.out / "gpu_check.md").read_text())
    return 0 if (report.result("numerics") or {}).get("ok") else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
