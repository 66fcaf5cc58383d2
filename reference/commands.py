"""Command-line commands of the trainer: entry points n4090_kit.commands and n4090_kit.bench.

Torch and the trainer's modules are imported when a command runs, so that `--help` stays instant.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from reference.chat.commands import DEVICE, SEED, TEMPERATURE, TOP_K
from reference.command_errors import explained
from reference.tables import print_table

if TYPE_CHECKING:
    from reference.chat.session import Session


PLOT = click.Path(dir_okay=False, path_type=Path)


@click.command("train")
@click.option("--recipe", "name", default="smoke", show_default=True, help="A name or a file.")
@click.option("--steps", default=20, show_default=True, type=click.IntRange(min=1))
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto")
@click.option("--threads", default=0, help="CPU threads; 0 takes the recipe's or torch's own.")
@click.option(
    "--compile",
    "compile_setting",
    type=click.Choice(["auto", "on", "off"]),
    help="Instead of the recipe's.",
)
@click.option("--plain/--no-plain", default=True, help="Time the plain PyTorch twin as well.")
@click.option("--vram-cap", default=0.0, metavar="GIB", help="Hold a larger GPU to this memory.")
@click.option("--plot", type=PLOT, help="Also as a plot: .svg, .png or .pdf.")
@click.option(
    "--predict",
    "card",
    metavar="CARD",
    help="Time nothing: predict this card's speed (rtx4090, …) from bytes and FLOPs.",
)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@explained()
def bench_train(
    name: str,
    steps: int,
    device: str,
    threads: int,
    compile_setting: str | None,
    plain: bool,
    vram_cap: float,
    plot: Path | None,
    card: str | None,
    as_json: bool,
) -> None:
    """Time a recipe's training steps beside plain PyTorch's.

    The tokens are made up; nothing is read and nothing is kept.
    """
    from reference.config.resolve import resolve_recipe

    recipe = resolve_recipe(name)
    if card is not None:
        from reference.bench.prediction import print_prediction

        print_prediction(recipe, card, as_json=as_json)
        return
    import torch

    from reference.bench.train import bench_training
    from reference.train.device import choose_device

    where = str(choose_device(device))
    if threads or recipe["threads"]:
        torch.set_num_threads(threads or recipe["threads"])
    result = bench_training(
        recipe,
        steps=steps,
        device=where,
        compile_setting=compile_setting,
        compare=plain,
        vram_cap_gib=vram_cap,
    )
    result = {"recipe": recipe["name"], **result}
    if plot is not None:
        from reference.bench.plots import plot_training

        plot_training(result, plot)
    if as_json:
        click.echo(json.dumps(result, indent=2))
    else:
        _print_table(result)


def _print_table(result: dict[str, Any]) -> None:
    def percent(value: float | None) -> str:
        return f"- ({result['mfu_reason']})" if value is None else f"{value:.1%}"

    plain = result["plain"] or {}
    shown = []
    for label, field, form in (
        ("tokens/s", "tokens_per_s", "{:,.0f}"),
        ("step, median ms", "step_ms_median", "{:,.1f}"),
        ("step, p99 ms", "step_ms_p99", "{:,.1f}"),
        ("first step, s", "first_step_s", "{:,.2f}"),
    ):
        twin = form.format(plain[field]) if plain else f"- ({result['plain_reason']})"
        shown.append((label, form.format(result[field]), twin))
    rows = {
        "MFU, nanochat's count": percent(result["mfu_nanochat"]),
        "MFU, causal attention halved": percent(result["mfu_causal"]),
        "peak memory, MiB": f"{result['peak_memory_bytes'] / 2**20:,.0f}",
        "planned memory, MiB": f"{result['planned_memory_bytes'] / 2**20:,.0f}"
        if result["planned_memory_bytes"]
        else "- (a GPU figure)",
        "waiting for rows": f"{result['wait_share']:.2%} of a step",
        "outside steps, s": f"{result['outside_steps_s']:.2f}",
        "compiling, s": f"{result['compile_s']:.1f}" if result["compiled"] else "not compiled",
        "device": f"{result['device']}, {result['dtype']}, {result['threads']} threads",
    }
    if result["micro_batch_parts"] > 1:
        parts = f"{result['micro_batch_parts']} pieces of each micro-batch"
        rows["out of memory"] = f"made in {parts}: free some of the GPU's memory"
    if result["device"] == "cpu":
        rows["matrix products"] = result["cpu_matmul"]
    speed = result["ratio_vs_plain"]
    against = () if speed is None else (("speed against plain", f"{speed:.2f}x", "1.00x"),)
    print_table(
        f"bench train {result['recipe']}: {result['steps']} steps",
        ("", "this trainer", "plain PyTorch"),
        [*shown, *rows.items(), *against],
    )


@click.command()
@click.argument("model", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--prompt", metavar="TEXT", help="Answer this one message and leave.")
@TEMPERATURE
@TOP_K
@SEED
@click.option("--max-new-tokens", default=256, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--system",
    default="none",
    show_default=True,
    help="System message, put before the conversation.",
)
@DEVICE
@click.option("--web", is_flag=True, help="In the browser instead of the terminal.")
@click.option("--host", default="127.0.0.1", show_default=True, help="With --web: listen here.")
@click.option(
    "--port",
    default=0,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="With --web; 0 takes a free one.",
)
@explained()
def chat(
    model: Path,
    prompt: str | None,
    temperature: float,
    top_k: int,
    seed: int,
    max_new_tokens: int,
    system: str,
    device: str,
    web: bool,
    host: str,
    port: int,
) -> None:
    """Talk to the chat model of RUN, a run folder or a checkpoint folder.

    Ctrl-C stops an answer, Ctrl-D leaves.
    """
    from reference.chat.engine import Sampling
    from reference.chat.session import BASE_STAGE, Session, find_checkpoint
    from reference.train.device import choose_device

    if web:
        from reference.chat.commands import serve_page

        sampling = Sampling(max_new_tokens, temperature, top_k, seed)
        serve_page(model, sampling, device=device, host=host, port=port)
        return
    session = Session.open(
        model,
        Sampling(max_new_tokens, temperature, top_k, seed),
        device=str(choose_device(device)),
        system=None if system == "none" else system,
    )
    if find_checkpoint(model).resolve().name == BASE_STAGE:
        click.echo(
            "warning: this is a base model: it continues text, it has not learned to answer",
            err=True,
        )
    if prompt is not None:
        if not prompt.strip():
            raise click.BadParameter("there is nothing to answer", param_hint="--prompt")
        _say(session, prompt)
        return
    click.echo("Ctrl-C stops an answer, Ctrl-D leaves.", err=True)
    while True:
        try:
            text = click.prompt("you", prompt_suffix="> ", default="", show_default=False, err=True)
        except click.Abort:  # Ctrl-D, or Ctrl-C at an empty line
            click.echo(err=True)
            return
        if text.strip():
            _say(session, text)


def _say(session: Session, text: str) -> None:
    """Writes the answer as it comes; Ctrl-C ends it."""
    pieces = session.ask(text)
    try:
        for piece in pieces:
            click.echo(piece, nl=False)
            sys.stdout.flush()
    except KeyboardInterrupt:
        pieces.close()
        click.echo(" [stopped]", nl=False, err=True)
    else:
        if not session.ended:
            click.echo(" [length limit]", nl=False, err=True)
    click.echo()
