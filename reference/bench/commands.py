"""`n4090-kit bench kernels` and `n4090-kit bench levers`: entry points n4090_kit.bench."""

from __future__ import annotations

import json
from pathlib import Path

import click

from reference.command_errors import explained
from reference.commands import PLOT
from reference.config.resolve import resolve_recipe
from reference.tables import print_table


@click.command("kernels")
@click.option("--depths", default="12,16,20,24", show_default=True, help="nanochat's depths.")
@click.option("--tokens", default=8192, show_default=True, type=click.IntRange(min=16))
@click.option("--seq-len", default=2048, show_default=True, type=click.IntRange(min=16))
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
@click.option("--seconds", default=0.0, help="Stop after this long; 0: when all is timed.")
@click.option("--plot", type=PLOT, help="Also as a plot: .svg, .png or .pdf.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@explained()
def bench_kernels(
    depths: str,
    tokens: int,
    seq_len: int,
    device: str,
    seconds: float,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Time matrix products in four precisions, and attention kernels.

    Every product includes the rounding of its factors; a kind whose results are wrong is
    not timed, and --json names the kernels that ran.
    """
    import time

    import torch

    from reference.bench.kernels import bench_attention, bench_matmuls
    from reference.train.device import choose_device

    try:
        chosen = [int(part) for part in depths.split(",")]
    except ValueError:
        chosen = []
    if not chosen or min(chosen) < 1:
        raise click.BadParameter("numbers with commas, as in 12,20", param_hint="--depths")
    began = time.perf_counter()

    def enough() -> bool:
        return bool(seconds) and time.perf_counter() - began > seconds

    where = choose_device(device)
    products = list(bench_matmuls(chosen, tokens=tokens, device=where, enough=enough))
    batch = max(1, tokens // seq_len)
    attention = list(
        bench_attention(chosen, batch=batch, seq_len=seq_len, device=where, enough=enough)
    )
    result = {
        "device": torch.cuda.get_device_name(where) if where.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "products": products,
        "attention": attention,
        "complete": not enough(),
    }
    if plot is not None:
        from reference.bench.plots import plot_kernels

        plot_kernels(products, plot)
    if as_json:
        click.echo(json.dumps(result, indent=2))
        return
    print_table(
        f"matrix products of {tokens} tokens on {result['device']}",
        ("depth", "map", "product", "factors", "ms", "TFLOP/s", "against bf16"),
        [
            (
                f"d{r['depth']}",
                r["map"],
                r["which"].replace("_", " "),
                r["kind"],
                _or(r["ms"], ".3f", r["reason"]),
                _or(r["tflops"], ".1f"),
                _or(r["speed"], ".2f"),
            )
            for r in products
        ],
    )
    print_table(
        "attention, forward and backward",
        ("depth", "window", "backend", "ms", ""),
        [
            (
                f"d{r['depth']}",
                str(r["window"]),
                r["backend"],
                _or(r["ms"], ".3f", r["reason"]),
                "fastest" if r["chosen"] else "",
            )
            for r in attention
        ],
    )


@click.command("levers")
@click.option("--recipe", "name", default="nano", show_default=True, help="A name or a file.")
@click.option("--steps", default=20, show_default=True, type=click.IntRange(min=2))
@click.option("--lever", "levers", multiple=True, help="Test only this setting; may be repeated.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
@click.option("--vram-cap", default=0.0, metavar="GIB", help="Hold a larger GPU to this memory.")
@click.option("--plot", type=PLOT, help="Also as a plot: .svg, .png or .pdf.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@explained()
def bench_levers(
    name: str,
    steps: int,
    levers: tuple[str, ...],
    device: str,
    vram_cap: float,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Change one setting at a time; compare speed, memory and the loss of a short run."""
    from reference.bench.levers import LEVERS
    from reference.bench.levers import bench_levers as run
    from reference.train.device import choose_device

    unknown = sorted(set(levers) - set(LEVERS))
    if unknown:
        raise click.BadParameter(
            f"no lever {unknown[0]!r}; there are: {', '.join(LEVERS)}", param_hint="--lever"
        )
    recipe = resolve_recipe(name)
    if vram_cap:
        recipe["pretrain"]["vram_cap_gib"] = vram_cap
    rows = run(
        recipe,
        device=str(choose_device(device)),
        steps=steps,
        names=levers,
        progress=lambda lever: click.echo(f"{lever} …", err=True),
    )
    if plot is not None:
        from reference.bench.plots import plot_levers

        plot_levers(rows, plot)
    if as_json:
        click.echo(json.dumps({"recipe": recipe["name"], "steps": steps, "rows": rows}, indent=2))
        return
    print_table(
        f"levers on {recipe['name']}, {steps} steps each",
        ("lever", "tokens/s", "speed", "memory, MiB", "planned", "last loss", "held-out"),
        [
            (
                r["lever"],
                _or(r.get("tokens_per_s"), ",.0f", r["reason"]),
                _or(r["speed"], ".2f"),
                *(
                    _or((r.get(key) or 0) / 2**20 or None, ",.0f")
                    for key in ("peak_bytes", "planned_bytes")
                ),
                _or(r.get("loss_last"), ".4f"),
                _or(r.get("made_bpb"), ".4f"),
            )
            for r in rows
        ],
    )


def _or(value: float | None, form: str, reason: str | None = None) -> str:
    return reason or "-" if value is None else format(value, form)
