"""Uploads an exported model to a model repository of the Hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from kit.board.hub import Hub, client, same
from kit.board.package import Item
from kit.model_export import usage


def check_token() -> None:
    """Raises PrerequisiteError unless there is a token that may write."""
    Hub(client()).who()


def push_folder(
    folder: Path, repository: str, *, chat: bool, tell: Callable[[str], None] = lambda text: None
) -> str:
    """Uploads an exported folder and returns the repository's address.

    The repository is made, public, where it is missing. Files that are there already with the same
    content are not sent again. A card (README.md) is written only where there is none.

    Raises:
        KitError: There is no token, or the Hub refuses; says what to do.
    """
    hub = Hub(client(), tell=tell)
    hub.make_model_repository(repository)
    remote_code = any(folder.glob("*.py"))
    front = "---\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n"
    lines = usage(f'"{repository}"', chat=chat, remote_code=remote_code)
    if (folder / "model.gguf").is_file():
        front = "---\npipeline_tag: text-generation\n---\n"
        lines = f"ollama run hf.co/{repository}\n"
    title = repository.split("/")[-1]
    card = f"{front}\n# {title}\n\nTrained with n4090-kit.\n\n```\n{lines}```\n"
    items = [Item(path.name, path) for path in sorted(folder.iterdir()) if path.is_file()]
    items.append(Item("README.md", card.encode()))
    there = hub.there(repository, "model", [item.path for item in items], "main")
    missing = [
        item
        for item in items
        if item.path not in there or (item.path != "README.md" and not same(there[item.path], item))
    ]
    if missing:
        hub.commit(repository, "model", missing, "Export by n4090-kit")
    return f"{hub.api.endpoint}/{repository}"
