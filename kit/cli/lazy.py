"""Command groups that load a command's module only when the command is named."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import click


class LazyGroup(click.Group):
    """A group whose `--help` imports none of its own commands.

    `commands_table`: command -> (`module:attribute`, its line in `--help`). Other packages, the
    trainer first of all, add commands through the entry-point group `plugins`; those are shown in
    a section of their own under `plugins_title`.
    """

    def __init__(
        self,
        *args: Any,
        commands_table: Mapping[str, tuple[str, str]],
        plugins: str,
        plugins_title: str,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.commands_table = commands_table
        self.plugins = plugins
        self.plugins_title = plugins_title

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self.commands_table, *sorted(entry.name for entry in self._entries())]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name in self.commands_table:
            module, _, attribute = self.commands_table[name][0].partition(":")
            return _command(getattr(import_module(module), attribute))
        for entry in self._entries():
            if entry.name == name:
                return _command(entry.load())
        return None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        own = [(name, text) for name, (_, text) in self.commands_table.items()]
        added = [
            (entry.name, _command(entry.load()).get_short_help_str(limit=70))
            for entry in sorted(self._entries(), key=lambda entry: entry.name)
        ]
        for title, rows in (("Commands", own), (self.plugins_title, added)):
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            close = difflib.get_close_matches(name, self.list_commands(ctx), n=1)
            hint = f" Did you mean `{close[0]}`?" if close else ""
            ctx.fail(f"no such command `{name}`.{hint}")
        return super().resolve_command(ctx, args)

    def _entries(self) -> tuple[EntryPoint, ...]:
        return tuple(entry_points(group=self.plugins))


def _command(value: Any) -> click.Command:
    assert isinstance(value, click.Command)
    _whole_help(value)
    return value


def _whole_help(command: click.Command) -> None:
    """Gives a command and its subcommands a line in `--help` that is not cut short."""
    if command.short_help is None and command.help:
        paragraph = " ".join(command.help.split("\n\n")[0].split())
        command.short_help = paragraph.split(". ")[0].rstrip(".") + "."
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            _whole_help(inner)
