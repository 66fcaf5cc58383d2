"""`n4090-kit bench …`: the kit's measurements and the trainer's, each in its own module."""

from __future__ import annotations

import click

from kit.cli.lazy import LazyGroup

BENCHES = {
    "core": ("kit.cli.bench_core:bench_core", "CORE evaluation against one example at a time."),
}


@click.group(
    cls=LazyGroup,
    commands_table=BENCHES,
    plugins="n4090_kit.bench",
    plugins_title="Benchmarks of the trainer",
)
def bench() -> None:
    """Measure speed on this machine, always as ratios within one run."""
