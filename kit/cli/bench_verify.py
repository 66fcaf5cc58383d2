"""`n4090-kit bench verify`: seconds and memory of checking a result."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import click


@click.command("verify")
@click.option(
    "--steps",
    default=20_000,
    show_default=True,
    type=click.IntRange(min=1),
    help="Steps of the generated day.",
)
@click.option(
    "--repeats",
    default=3,
    show_default=True,
    type=click.IntRange(min=1),
    help="The fastest counts.",
)
@click.option(
    "--gb",
    default=4.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="GB to hash; 0 leaves that out.",
)
@click.option(
    "--result",
    type=click.Path(exists=True, path_type=Path),
    help="A short run to time as well; by default one is generated.",
)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def bench_verify(steps: int, repeats: int, gb: float, result: Path | None, as_json: bool) -> None:
    """Time `verify` on a generated 24 h run, on a short run, and on GBs of weights.

    Fresh processes, start-up included. The day has 20,000 steps and a telemetry row a second.
    """
    from kit.verify import bench
    from kit.verify.synthetic import gpu_run

    with tempfile.TemporaryDirectory(prefix="n4090-bench-") as name:
        folder = Path(name)
        click.echo(f"generating a day of {steps:,} steps …", err=True)
        contents = bench.make_day(folder / "day", steps)
        day = bench.time_verify(folder / "day", repeats=repeats)
        if result is None:
            result = gpu_run(steps=24).write(folder / "short")
        short = bench.time_verify(result, repeats=repeats)
        hashing = bench.time_hashing(folder, int(gb * 1e9)) if gb else None
    if as_json:
        document = {
            "day": {**contents, **day._asdict()},
            "short": short._asdict(),
            "hashing": hashing and hashing._asdict(),
        }
        click.echo(json.dumps(document, indent=2))
        return
    click.echo(
        f"a day ({contents['telemetry_rows']:,} telemetry rows, {contents['step_events']:,} steps, "
        f"{contents['bytes'] / 1e6:.0f} MB): {day.wall_s:.2f} s ({day.cpu_s:.2f} s of CPU), "
        f"peak {day.peak_bytes / 1e6:.0f} MB"
    )
    click.echo(f"a short run: {short.wall_s:.2f} s ({short.cpu_s:.2f} s of CPU)")
    if hashing:
        rate = hashing.bytes / 1e9
        click.echo(
            f"hashing {rate:.1f} GB: {rate / hashing.kit_s:.2f} GB/s; sha256 in memory "
            f"{rate / hashing.sha256_s:.2f}, reading alone {rate / hashing.read_s:.2f}; "
            f"again, cached: {hashing.cached_s * 1000:.1f} ms"
        )
