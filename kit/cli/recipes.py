"""`n4090-kit recipes`: what can be run, and what it would cost."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import click

SET = click.option(
    "--set", "settings", multiple=True, metavar="A.B=V", help="Change a field; repeatable."
)


@click.group(invoke_without_command=True)
@click.pass_context
def recipes(ctx: click.Context) -> None:
    """List recipes, or show one resolved."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_recipes)


@recipes.command("list")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def list_recipes(as_json: bool = False) -> None:
    """List the named recipes."""
    from rich.console import Console
    from rich.table import Table

    from kit.recipe import load_recipe, named_recipes

    found = [load_recipe(name) for name in named_recipes()]
    if as_json:
        rows = [{"name": r.name, "track": r.track, "title": r.document["title"]} for r in found]
        click.echo(json.dumps(rows, indent=2))
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("recipe", "track", "budget", "what it is"):
        table.add_column(heading, header_style="dim")
    for recipe in found:
        hours = recipe.budget_s / 3600
        budget = f"{hours:g} h" if hours >= 1 else f"{60 * hours:g} min"
        table.add_row(recipe.name, recipe.track, budget, recipe.document["title"])
    Console().print(table)


@recipes.command("show")
@click.argument("name")
@SET
@click.option("--json", "as_json", is_flag=True, help="The resolved recipe and its plan as JSON.")
def show(name: str, settings: tuple[str, ...], as_json: bool) -> None:
    """Print recipe NAME with every default, and what it will cost."""
    from kit.overrides import override
    from kit.recipe import load_recipe, resolved_toml
    from kit.run.preflight import estimate

    recipe = override(load_recipe(name), settings)
    plan = estimate(recipe)
    if as_json:
        click.echo(json.dumps({"recipe": recipe.document, "plan": plan}, indent=2))
        return
    click.echo(resolved_toml(recipe))
    if plan:
        click.echo("\n".join(f"# {line}" for line in plan_lines(plan)))


@recipes.command("new")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--from", "base", default="nano", show_default=True, help="Recipe to begin with.")
@SET
def new(file: Path, base: str, settings: tuple[str, ...]) -> None:
    """Write a recipe of your own to FILE: a copy of another, with another name."""
    from kit.cli.invocation import program, shown_path
    from kit.errors import PrerequisiteError
    from kit.files import write_bytes
    from kit.overrides import override
    from kit.recipe import load_recipe, parse_recipe

    if file.exists():
        raise PrerequisiteError(
            f"{file} exists", hint="Nothing is overwritten: name another file, or remove it."
        )
    changed = [*settings, f"name={json.dumps(file.stem)}"]
    recipe = override(load_recipe(base), changed)
    text = f"# From recipe {base}. `n4090-kit recipes schema` says what each field means.\n"
    text += recipe.text.split("\n", 1 + len(changed))[-1]
    parse_recipe(text, folder=file.resolve().parent, label=file.name)
    write_bytes(file, text.encode())
    click.echo(f"wrote {file}", err=True)
    click.echo(f"next: {program()} run --recipe {shown_path(file.resolve())}", err=True)


@recipes.command("diff")
@click.argument("a")
@click.argument("b")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def diff(a: str, b: str, as_json: bool) -> None:
    """Show the fields in which recipes A and B differ, defaults filled in."""
    from rich.console import Console
    from rich.table import Table

    from kit.overrides import differences
    from kit.recipe import load_recipe

    found = differences(load_recipe(a), load_recipe(b))
    if as_json:
        rows = [{"field": field, "a": old, "b": new} for field, old, new in found]
        click.echo(json.dumps(rows, indent=2))
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("field", a, b):
        table.add_column(heading, header_style="dim", overflow="fold")
    for field, old, new in found:
        table.add_row(field, *("-" if v is None else json.dumps(v) for v in (old, new)))
    Console(markup=False).print(table if found else "no difference")


@recipes.command("check")
@click.argument("names", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Each recipe resolved, or its problems.")
@click.pass_context
def check(ctx: click.Context, names: tuple[str, ...], as_json: bool) -> None:
    """Check recipes: names or files, any number of them."""
    from kit.errors import SchemaError
    from kit.recipe import load_recipe

    rows: list[dict[str, Any]] = []
    for name in names:
        try:
            rows.append({"name": name, "recipe": load_recipe(name).document, "error": None})
        except SchemaError as error:
            told = {"message": error.message, "hint": error.hint}
            rows.append({"name": name, "recipe": None, "error": told})
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    for row in rows:
        if not as_json:
            click.echo(row["error"]["message"] if row["error"] else f"{row['name']} is right")
    if any(row["error"] for row in rows):
        ctx.exit(2)


@recipes.command("schema")
@click.option("--trainer", "name", default="reference", help="Whose sections [reference].")
def schema(name: str) -> None:
    """Print every field of a recipe with its meaning, limits and default."""
    from kit.schemas import load_schema
    from kit.trainer import find_trainer

    trainer = find_trainer(name, None)
    sections = trainer.sections() if trainer else {}
    for name, rule in {**load_schema("recipe")["properties"], **sections}.items():
        if rule.get("type") == "object" and "properties" in rule:
            click.echo(f"\n[{name}]  {rule['description']}")
            for field, inner in rule["properties"].items():
                click.echo(f"  {field:<20} {_meaning(inner)}")
        else:
            click.echo(f"{name:<22} {_meaning(rule)}")


def _meaning(rule: dict[str, Any]) -> str:
    default = f" [{json.dumps(rule['default'])}]" if "default" in rule else ""
    choices = f" ({', '.join(map(str, rule['enum']))})" if "enum" in rule else ""
    unit = f" ({rule['unit']})" if "unit" in rule else ""
    return f"{rule['description']}{choices}{unit}{default}"


# Below it, starting and compiling cost more than the steps whose time the plan predicts.
_LEAST_HOURS = 0.1


def plan_lines(plan: dict[str, Any]) -> list[str]:
    """The trainer's plan in a person's units, in lines of at most 78 characters."""
    parameters, flops, card = plan["parameters"], plan["flops"], plan["rtx4090"]
    per_token, vram = plan["flops_per_token"], plan["vram_bytes"]
    parts = ", ".join(
        f"{name} {bytes_ / 2**30:.2f}"
        for name, bytes_ in vram.items()
        if name not in ("total", "fits_24gb")
    )
    lines = [
        f"parameters  {parameters['total'] / 1e6:,.1f} M,"
        f" of which {parameters['scaling'] / 1e6:,.1f} M in matrices and head",
        f"tokens      {plan['tokens'] / 1e6:,.1f} M"
        f" ({plan['tokens_per_scaling_parameter']:.1f} per scaling parameter)",
        f"FLOPs       {flops['nanochat']:.3g} by nanochat's count,"
        f" {flops['causal']:.3g} with causal attention halved",
        f"            {per_token['nanochat'] / 1e9:.4g} and {per_token['causal'] / 1e9:.4g}"
        " GFLOP a token",
        f"VRAM        {vram['total'] / 2**30:.2f} GiB predicted ({parts})",
    ]
    if card["pretrain_hours"] >= _LEAST_HOURS:
        lines += [
            f"RTX 4090    {card['pretrain_hours']:.2f} h of pretraining predicted"
            f" at {card['tokens_per_s']:,.0f} tokens/s, assuming:",
            *(f"            - {line}" for line in card["assumptions"]),
        ]
    indent = " " * 14
    return [
        part
        for line in lines
        for part in textwrap.wrap(line, 78, subsequent_indent=indent, break_on_hyphens=False)
    ]
