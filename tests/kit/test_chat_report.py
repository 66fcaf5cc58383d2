"""Chat evaluations side by side; nothing that a model wrote is more than text."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner

from kit.chat_report import page, read_chat, table
from kit.cli.eval import evaluate
from kit.errors import PrerequisiteError, SchemaError

EVIL = '</blockquote><script>alert(1)</script><img src=x onerror="alert(2)">'


def write(folder: Path, centered: float | None, answer: str = "Blue", **other: object) -> Path:
    task = {"n": 4, "accuracy": 0.5, "centered": centered, "ended_rate": 1.0}
    document = {
        "format": 1,
        "tasks": {"facts": task, "dolly": {**task, "accuracy": None, "centered": None}},
        "aggregate": {"centered": centered},
        "behaviour": {
            "followed": 0.25,
            "ended": 0.75,
            "repetition": 0.1,
            "looping": 0.0,
            "answers": [
                {
                    "prompt": "Name a colour <now>",
                    "answer": answer,
                    "ended": False,
                    "followed": False,
                    "looping": True,
                }
            ],
        },
        **other,
    }
    (folder / "eval").mkdir(parents=True)
    (folder / "eval" / "chat.json").write_text(json.dumps(document))
    return folder


def test_rows_hold_scores_and_behaviour_of_each_run(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a", 0.5), write(tmp_path / "b", 0.25, behaviour=None)
    rows = dict(table([read_chat(first), read_chat(second / "eval" / "chat.json")]))
    assert rows["facts"] == [0.5, 0.25]
    assert "dolly" not in rows  # free answers have no score
    assert rows["chat score"] == [0.5, 0.25]
    assert rows["turns ended"] == [0.75, None]


def test_the_command_prints_and_writes_a_page(tmp_path: Path) -> None:
    runs = [str(write(tmp_path / name, 0.5)) for name in ("one", "two")]
    shown = CliRunner().invoke(evaluate, ["chat", *runs, "--json"])
    assert json.loads(shown.output)["rows"]["instructions followed"] == [0.25, 0.25]
    assert "chat score" in CliRunner().invoke(evaluate, ["chat", *runs]).output
    out = tmp_path / "chat.html"
    assert CliRunner().invoke(evaluate, ["chat", *runs, "--html", str(out)]).exit_code == 0
    assert "Name a colour &lt;now&gt;" in out.read_text()


def test_what_a_model_wrote_is_text(tmp_path: Path) -> None:
    tags: list[str] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: tags.append(tag)  # type: ignore[method-assign]
    parser.feed(page([read_chat(write(tmp_path / "<b>run", 0.5, EVIL))]))
    assert "script" not in tags and "img" not in tags and "b" not in tags
    assert "blockquote" in tags


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"tasks": {"a": 1}}', '{"tasks": {}, "behaviour": {"x": 1}}']
)
def test_a_file_of_another_kind_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "chat.json"
    file.write_text(text)
    with pytest.raises(SchemaError, match="not a chat evaluation"):
        read_chat(file)


def test_a_run_without_chat_evaluation_is_named(tmp_path: Path) -> None:
    with pytest.raises(PrerequisiteError, match="there is no chat evaluation"):
        read_chat(tmp_path)
