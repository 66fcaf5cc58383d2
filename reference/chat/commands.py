"""Commands that run a trained model: `serve`, `generate`, and the page of `chat --web`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from reference.command_errors import explained

if TYPE_CHECKING:
    from reference.chat.engine import Sampling

RUN = click.Path(path_type=Path)
DEVICE = click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto")
TEMPERATURE = click.option(
    "--temperature",
    default=0.6,
    show_default=True,
    type=click.FloatRange(min=0),
    help="0 always takes the likeliest token.",
)
TOP_K = click.option(
    "--top-k",
    default=50,
    show_default=True,
    type=click.IntRange(min=0),
    help="Draw among the k likeliest tokens; 0: among all.",
)
SEED = click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(min=0, max=2**31 - 1)
)


@click.command()
@click.argument("run", metavar="RUN", type=RUN)
@click.option("--host", default="127.0.0.1", show_default=True, help="Listen here.")
@click.option(
    "--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0: a free one."
)
@click.option(
    "--api-key",
    envvar="N4090_API_KEY",
    show_envvar=True,
    help="What requests must show; made and printed where others can reach the server.",
)
@click.option("--base", is_flag=True, help="The base model of RUN instead of the chat model.")
@click.option("--temperature", default=0.6, show_default=True, type=click.FloatRange(0, 2))
@TOP_K
@click.option("--max-new-tokens", default=256, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--max-batch",
    default=16,
    show_default=True,
    type=click.IntRange(1, 256),
    help="Requests that run together.",
)
@click.option(
    "--max-waiting",
    default=64,
    show_default=True,
    type=click.IntRange(min=1),
    help="Requests that may wait; others get status 429.",
)
@DEVICE
@explained("train,serve")
def serve(
    run: Path,
    host: str,
    port: int,
    api_key: str | None,
    base: bool,
    temperature: float,
    top_k: int,
    max_new_tokens: int,
    max_batch: int,
    max_waiting: int,
    device: str,
) -> None:
    """Serve the model of RUN as OpenAI does: any of its clients can use it.

    /v1/models, /v1/completions, /v1/chat/completions, and a chat page at /. Requests give their own
    temperature, top_p, top_k, seed, stop, n and max_tokens; the options here are what they leave
    out.
    """
    from reference.chat.engine import Sampling

    sampling = Sampling(max_new_tokens, temperature, top_k)
    _serve(
        run, sampling, device=device, host=host, port=port, key=api_key, base=base,
        max_batch=max_batch, max_waiting=max_waiting,
    )  # fmt: skip


@explained("train,serve")
def serve_page(run: Path, sampling: Sampling, *, device: str, host: str, port: int) -> None:
    """The chat page of `chat --web`, until Ctrl-C."""
    _serve(run, sampling, device=device, host=host, port=port)


def _serve(
    run: Path,
    sampling: Sampling,
    *,
    device: str,
    host: str,
    port: int,
    key: str | None = None,
    base: bool = False,
    max_batch: int = 16,
    max_waiting: int = 64,
) -> None:
    import uvicorn  # noqa: F401 - missing packages are told before a model is loaded

    from reference.chat.batching import Batcher
    from reference.chat.protocol import Limits
    from reference.chat.server import Listener, make_app
    from reference.chat.server import run as run_server
    from reference.chat.session import STAGES, find_checkpoint
    from reference.tokenizer.bpe import Tokenizer
    from reference.train.checkpoint import load_model
    from reference.train.device import choose_device

    where = str(choose_device(device))
    folder = find_checkpoint(run, STAGES[::-1] if base else STAGES)
    listener = Listener(host, port, key)
    model, config = load_model(folder, where)
    model.to(model.dtype)  # nothing is trained here: cast the matrices once
    model.requires_grad_(False)
    name = run.resolve().name if folder != run else folder.resolve().name
    chat = not base and folder.name != "pretrain"
    limits = Limits(name, chat, config.seq_len, sampling)
    tokenizer = Tokenizer.load(folder)
    batcher = Batcher(model, max_batch=max_batch, max_waiting=max_waiting)
    app = make_app(batcher, tokenizer, limits, hosts=listener.hosts, key=listener.key)
    if not listener.loopback:
        click.echo("others on the network can reach this server; it asks for the key", err=True)
    click.echo(f"page: {listener.page_url}")
    click.echo(
        f"API:  {listener.url}/v1  model {name}" + (", with the key" if listener.key else "")
    )
    click.echo("Ctrl-C ends it", err=True)
    sys.stdout.flush()
    try:
        run_server(app, listener)
    finally:
        batcher.close()


@click.command()
@click.argument("run", metavar="RUN", type=RUN)
@click.argument("prompt", metavar="TEXT")
@click.option("--chat", "chat_model", is_flag=True, help="The chat model instead of the base.")
@click.option("-n", "count", default=1, show_default=True, type=click.IntRange(1, 64))
@TEMPERATURE
@TOP_K
@click.option("--top-p", default=1.0, show_default=True, type=click.FloatRange(0, 1, min_open=True))
@SEED
@click.option("--max-new-tokens", default=128, show_default=True, type=click.IntRange(min=1))
@DEVICE
@explained()
def generate(
    run: Path,
    prompt: str,
    chat_model: bool,
    count: int,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int,
    max_new_tokens: int,
    device: str,
) -> None:
    """Continue TEXT with the base model of RUN; `-` reads the text from stdin.

    Texts end where the model would begin another document.
    """
    from reference.chat.engine import Sampling
    from reference.chat.engine import generate as run_model
    from reference.chat.session import STAGES, find_checkpoint
    from reference.tokenizer.bpe import Tokenizer
    from reference.train.checkpoint import load_model
    from reference.train.device import choose_device

    where = str(choose_device(device))
    folder = find_checkpoint(run, STAGES if chat_model else STAGES[::-1])
    text = sys.stdin.read() if prompt == "-" else prompt
    model, _ = load_model(folder, where)
    tokenizer = Tokenizer.load(folder)
    ids = [tokenizer.bos_id, *tokenizer.encode([text])[0]]
    sampling = Sampling(max_new_tokens, temperature, top_k, seed, top_p)
    answers = run_model(model, [ids] * count, sampling, {tokenizer.bos_id})
    for answer in answers:
        click.echo(text + tokenizer.decode(answer.ids))
        if not answer.ended:
            click.echo("[length limit]", err=True)
