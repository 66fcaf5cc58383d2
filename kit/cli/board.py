"""`n4090-kit board …`: the leaderboard, each command in its own module."""

from __future__ import annotations

import click

from kit.cli.lazy import LazyGroup

BOARD_COMMANDS = {
    "publish": ("kit.cli.board_publish:publish", "Judge what is new and write the table."),
    "site": ("kit.cli.board_site:site", "Write the static site: table, charts, a page a row."),
    "rebuild": ("kit.cli.board_publish:rebuild", "Derive the table again, or check that it is."),
    "dispute": ("kit.cli.board_statements:dispute", "Doubt a row in public, under your key."),
    "withdraw": ("kit.cli.board_statements:withdraw", "Take a row back."),
    "rescore": ("kit.cli.board_rescore:rescore", "Score rows' weights on questions drawn now."),
    "vouch": ("kit.cli.board_rescore:vouch", "Note the age and keys of an account."),
    "correct": ("kit.cli.board_statements:correct", "Correct a row's figures (maintainers)."),
    "resolve": ("kit.cli.board_statements:resolve", "Answer a dispute (maintainers)."),
}


@click.group(
    cls=LazyGroup,
    commands_table=BOARD_COMMANDS,
    plugins="n4090_kit.board",
    plugins_title="Commands of others",
)
def board() -> None:
    """The leaderboard, in a folder or on the Hub.

    BOARD is a folder (its own, or a repository with `submissions/`) or a dataset on the Hub
    (OWNER/NAME; HF_ENDPOINT names another Hub).
    """
