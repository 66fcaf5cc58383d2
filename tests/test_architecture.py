"""The house: who may import whom, what an import may do, who may print."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
KIT = sorted((ROOT / "kit").rglob("*.py"))
REFERENCE = sorted((ROOT / "reference").rglob("*.py"))
# Modules that a process starts with: they may print and exit.
ENTRY_POINTS = {"__main__.py", "gpu_probe.py"}


def imports(path: Path, *, top_level: bool = False) -> Iterator[str]:
    """Modules that `path` imports; only those an import of it runs with `top_level`."""
    tree = ast.parse(path.read_text())
    nodes = _run_on_import(tree) if top_level else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            package = node.module or ""
            folder = ROOT / package.replace(".", "/")
            for alias in node.names:
                is_module = (folder / f"{alias.name}.py").is_file()
                yield f"{package}.{alias.name}" if is_module else package


def _run_on_import(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _run_on_import(child)


def calls(path: Path, name: str) -> list[int]:
    return [
        node.lineno
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == name
    ]


@pytest.mark.parametrize(("files", "other"), [(KIT, "reference"), (REFERENCE, "kit")])
def test_judge_and_trainer_never_import_each_other(files: list[Path], other: str) -> None:
    assert files
    for path in files:
        assert other not in {name.split(".")[0] for name in imports(path)}, path


def test_no_module_of_the_kit_imports_a_heavy_package_when_it_is_imported() -> None:
    heavy = {"torch", "transformers", "docker", "huggingface_hub", "datasets", "pyarrow"}
    for path in KIT:
        found = heavy & {name.split(".")[0] for name in imports(path, top_level=True)}
        # A model adapter is itself only imported when a model is loaded; a probe is a process.
        assert not found or path.name in {"gpu_probe.py"}, (path, found)


def test_verify_stands_on_the_base_dependencies_alone() -> None:
    base = {"click", "cryptography", "jsonschema", "rfc8785", "rich", "kit"}
    for folder in ("verify", "trust"):
        for path in (ROOT / "kit" / folder).rglob("*.py"):
            for name in imports(path, top_level=True):
                package = name.split(".")[0]
                assert package in base or package in sys.stdlib_module_names, (path, name)


def test_imports_of_the_kit_have_no_circles() -> None:
    graph: dict[str, set[str]] = {}
    for path in KIT:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        names = {name for name in imports(path, top_level=True) if name.startswith("kit")}
        graph[module] = names - {module, "kit"}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail, module))
        if module in done:
            return
        for name in graph.get(module, ()):
            visit(name, (*trail, module))
        done.add(module)

    for module in graph:
        visit(module, ())


def package_of(module: str) -> str:
    """`kit.run` for `kit.run.plan`; a module directly under `kit` stands for itself."""
    parts = module.split(".")
    return ".".join(parts[:2])


def test_packages_of_the_kit_depend_on_each_other_in_one_direction_only() -> None:
    """Imports inside functions count as well: they hide a cycle, they do not break it."""
    graph: dict[str, dict[str, str]] = {}
    for path in KIT:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for name in imports(path):
            here, there = package_of(module), package_of(name)
            if name.startswith("kit.") and module != "kit" and here != there:
                graph.setdefault(here, {}).setdefault(there, f"{module} imports {name}")
    done: set[str] = set()

    def visit(package: str, trail: tuple[str, ...]) -> None:
        if package in trail:
            cycle = (*trail[trail.index(package) :], package)
            pairs = pairwise(cycle)
            raise AssertionError("; ".join(graph[here][there] for here, there in pairs))
        if package not in done:
            for name in graph.get(package, ()):
                visit(name, (*trail, package))
            done.add(package)

    for package in list(graph):
        visit(package, ())


def test_only_the_command_line_prints_or_exits() -> None:
    for path in KIT:
        if "cli" in path.parts or path.name in ENTRY_POINTS:
            continue
        for name in ("print", "click.echo", "sys.exit", "exit"):
            assert not calls(path, name), f"{path} calls {name}"


def test_importing_a_module_does_no_work() -> None:
    """No file is opened, no process started, no network used by importing any kit module."""
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in KIT
        if path.name not in ENTRY_POINTS
    ]
    code = (
        "import sys, importlib\n"
        "def refuse(event, arguments):\n"
        "    if event in ('subprocess.Popen', 'socket.connect', 'os.mkdir', 'os.remove'):\n"
        "        raise SystemExit(f'{event} {arguments}')\n"
        "    if event == 'open' and set(str(arguments[1])) & set('wax+'):\n"
        "        raise SystemExit(f'{event} {arguments}')\n"
        "sys.dont_write_bytecode = True\n"
        "sys.addaudithook(refuse)\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "assert 'torch' not in sys.modules, 'torch'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_help_loads_neither_torch_nor_numpy() -> None:
    code = (
        "import sys\nfrom kit.cli.main import cli\n"
        "try: cli(['--help'], prog_name='n4090-kit')\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'numpy', 'pyarrow', 'jsonschema', 'rich'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_no_model_is_loaded_by_unpickling() -> None:
    """What others will load is safetensors; torch.load is for one's own state, weights only."""
    for path in KIT + REFERENCE:
        text = path.read_text()
        assert "pickle.load" not in text, path
        for number in calls(path, "torch.load"):
            line = text.splitlines()[number - 1]
            assert "weights_only=True" in line, f"{path}:{number}"


def test_bench_lists_the_kits_and_the_trainers_measurements():
    from click.testing import CliRunner

    from kit.cli.main import cli

    shown = CliRunner().invoke(cli, ["bench", "--help"]).output
    assert "\n  core " in shown
    assert "\n  train " in shown
    wrong = CliRunner().invoke(cli, ["bench", "cores"])
    assert wrong.exit_code == 2
    assert "Did you mean `core`?" in wrong.output
