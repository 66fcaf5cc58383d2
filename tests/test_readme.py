"""What the README says about commands, recipes and files is what there is."""

import re
from pathlib import Path

from kit.cli.main import cli
from kit.recipe import named_recipes

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_every_command_named_exists() -> None:
    group = cli.list_commands(None)  # type: ignore[arg-type]
    named = set(re.findall(r"n4090-kit ([a-z]+)\b", README))
    assert {"run", "verify", "chat"} <= named <= set(group)


def test_every_recipe_is_named_and_every_link_leads_somewhere() -> None:
    for name in named_recipes():
        assert f"`{name}`" in README, name
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target


def test_the_make_targets_it_names_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make ([a-z]+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
