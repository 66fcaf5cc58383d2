"""`n4090-kit eval chat`: chat evaluations of runs side by side."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command("chat")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--html", "page", type=click.Path(path_type=Path), help="Write a page with answers.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def chat(runs: tuple[Path, ...], page: Path | None, as_json: bool) -> None:
    """Show chat evaluations side by side: RUNS are run folders or eval/chat.json files.

    Scores, and how the models behave on fixed prompts; --html shows their answers too. The chat
    score is not nanochat's ChatCORE, which stands beside it where its five tasks were asked.
    """
    from rich.console import Console
    from rich.table import Table

    from kit import chat_report
    from kit.files import write_bytes

    chats = [chat_report.read_chat(path) for path in runs]
    if page is not None:
        write_bytes(page, chat_report.page(chats).encode())
        click.echo(page)
        return
    rows = chat_report.table(chats)
    if as_json:
        names = [chat.name for chat in chats]
        click.echo(json.dumps({"runs": names, "rows": dict(rows)}, indent=2))
        return
    shown = Table(box=None, pad_edge=False, header_style="dim")
    shown.add_column("")
    for chat_ in chats:
        shown.add_column(chat_.name, justify="right", overflow="fold")
    for label, values in rows:
        shown.add_row(label, *("-" if value is None else f"{value:.3f}" for value in values))
    Console().print(shown)
    click.echo(f"\n{chat_report.remark(chats)}")
