"""A file is what the ending of its name says, in any case: `.PARQUET` is `.parquet`."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kit.files import files_ending, has_ending
from kit.prepare.inputs import Inputs, describe, refuse_given
from kit.prepare.sources import RemoteFile, Snapshot
from kit.prepare.wanted import shard_files
from kit.recipe import load_recipe
from reference.errors import TrainerError
from reference.rows.documents import find_shards
from reference.rows.json_lines import files_by_stem, json_lines

ROOT = Path(__file__).parent.parent
READ = r"\.(parquet|jsonl|safetensors|gguf|toml|txt|tiktoken|gz|zst|bin|py)$"
# Files that the same command wrote before, under names of its own.
OWN_FILES = {
    ("reference/data/bench.py", "(root / 'out').glob('*.parquet')"),
    ("reference/data/study.py", "corpus.glob('train-*.parquet')"),
    ("kit/recipe.py", "(Path(root) / 'recipes').glob('*.toml')"),
    ("kit/board/card.py", "path.endswith('.py')"),
    ("kit/board/push_model.py", "folder.glob('*.py')"),
    ("reference/gpu_check.py", "Path(__file__).parent.rglob('*.py')"),
    ("kit/cli/export.py", "file.endswith('.py')"),
}


def comparisons(path: Path) -> Iterator[str]:
    """Expressions that compare a file name's ending as it is written."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Compare) and isinstance(node.left, ast.Attribute):
            others = [n for n in ast.walk(node) if isinstance(n, ast.Constant)]
            if node.left.attr == "suffix" and any(re.search(READ, str(n.value)) for n in others):
                yield ast.unparse(node)
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        if node.func.attr not in ("endswith", "glob", "rglob"):
            continue
        words = [n.value for a in node.args for n in ast.walk(a) if isinstance(n, ast.Constant)]
        lowered = "lower()" in ast.unparse(node.func.value)
        if not lowered and any(re.search(READ, str(word)) for word in words):
            yield ast.unparse(node)


@pytest.mark.parametrize("tree", ["kit", "reference"])
def test_no_module_compares_an_ending_as_it_is_written(tree: str) -> None:
    found = {
        (path.relative_to(ROOT).as_posix(), text)
        for path in (ROOT / tree).rglob("*.py")
        for text in comparisons(path)
    }
    assert found <= OWN_FILES, "use kit.files.has_ending/files_ending or reference's files_ending"


def test_the_search_finds_what_it_is_for(tmp_path: Path) -> None:
    code = tmp_path / "a.py"
    code.write_text(
        "a = [p for p in folder.glob('*.parquet')]\n"
        "b = name.endswith(('.jsonl', '.gz'))\n"
        "c = path.suffix == '.safetensors'\n"
        "d = path.suffix in ('.bin', '.pt')\n"
        "e = name.lower().endswith('.parquet')\n"
        "f = path.suffix.lower() == '.json'\n"
    )
    assert len(list(comparisons(code))) == 4


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Four shards with endings as they are met, and what macOS puts beside them."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name in ("a.parquet", "b.PARQUET", "c.Parquet", "d.parquet"):
        pq.write_table(pa.table({"text": [f"text of {name}"]}), folder / name)
    (folder / "._a.parquet").write_bytes(b"\0\5\x16\7")
    return folder


def test_trainer_and_kit_read_the_same_shards(corpus: Path, tmp_path: Path) -> None:
    shards = find_shards(corpus)
    assert [path.name for path in shards.train] == ["a.parquet", "b.PARQUET", "c.Parquet"]
    described = describe(Inputs(data=corpus), tmp_path / "digests.json")["data"]
    assert [file["path"] for file in described["files"]] == [
        path.name for path in (*shards.train, *shards.validation)
    ]
    (tmp_path / "only").mkdir()
    (corpus / "d.parquet").rename(tmp_path / "only" / "d.PARQUET")
    refuse_given(load_recipe("smoke"), {"data": tmp_path / "only"})


def test_a_repository_may_spell_its_endings_as_it_likes() -> None:
    names = ("x/0.PARQUET", "x/1.parquet", "x/2.Parquet", "README.md")
    files = tuple(RemoteFile(name, 1) for name in names)
    wanted = shard_files(Snapshot("a/b", "main", "0" * 40, None, None, None, files), 2)
    assert [item.path for item in wanted] == [
        "pretrain/0.PARQUET",
        "pretrain/1.parquet",
        "pretrain/2.Parquet",
    ]


def test_one_name_means_one_file(tmp_path: Path) -> None:
    (tmp_path / "talk.jsonl").write_text("[]\n")
    (tmp_path / "other.JSONL").write_text("[]\n")
    assert list(files_by_stem(tmp_path)) == ["other", "talk"]
    (tmp_path / "talk.JsonL").write_text("[]\n")
    if len(files_ending(tmp_path, ".jsonl")) == 3:  # not on a disk that knows no case
        with pytest.raises(TrainerError, match=r"holds both talk\.JsonL and talk\.jsonl"):
            files_by_stem(tmp_path)


@pytest.mark.parametrize(
    "data",
    [
        b'[1]\n{"a": 2}\n',
        b'\xef\xbb\xbf[1]\n{"a": 2}',
        b'[1]\r\n\r\n{"a": 2}\r\n',
        b'[1]\n\0\0\0{"a": 2}\n' + bytes(4096),
    ],
)
def test_lines_are_read_as_people_save_them(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(data)
    assert [value for _, value in json_lines(tmp_path / "a.jsonl", "")] == [[1], {"a": 2}]


@pytest.mark.parametrize("line", [b"[" * 100_000, b"{'a': 1}", b"\xff\xfe[\0", b"9" * 5000])
def test_a_line_that_is_not_json_is_named(line: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"[]\n" + line + b"\n")
    with pytest.raises(TrainerError, match="line 2"):
        list(json_lines(tmp_path / "a.jsonl", ""))


def test_has_ending() -> None:
    assert has_ending("X.JSONL.GZ", ".jsonl.gz") and has_ending(Path("a.Toml"), ".json", ".toml")
    assert not has_ending("parquet", ".parquet")
