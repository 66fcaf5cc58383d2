"""Chat evaluations of one or more runs side by side: scores, behaviour, and the answers themselves.

Reads `eval/chat.json` (format 1), which the trainer's chat_eval stage leaves and a result states
the digest of. Nothing is computed anew: what stands here stands in the files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from kit.errors import PrerequisiteError, SchemaError

# Figure -> (what it says, whether more is better).
BEHAVIOUR = {
    "followed": ("instructions followed", True),
    "ended": ("turns ended", True),
    "repetition": ("repeated 4-grams", False),
    "looping": ("answers that loop", False),
}


class Chat(NamedTuple):
    """One evaluation: its name for people and its document."""

    name: str
    document: Mapping[str, Any]

    @property
    def behaviour(self) -> Mapping[str, Any]:
        """Empty where an earlier version made the file, or another trainer."""
        found: Mapping[str, Any] = self.document.get("behaviour") or {}
        return found


def read_chat(path: Path) -> Chat:
    """The evaluation in a run folder, or in a file.

    Raises:
        PrerequisiteError: It is not there.
        SchemaError: It is no chat evaluation.
    """
    file = path / "eval" / "chat.json" if path.is_dir() else path
    name = path.resolve().name if path.is_dir() else file.stem
    try:
        document = json.loads(file.read_text("utf-8"))
        chat = Chat(name, document)
        for task in document["tasks"].values():
            assert set(task) >= {"n", "accuracy", "centered", "ended_rate"}
        for answer in chat.behaviour.get("answers", ()):
            assert isinstance(answer["prompt"], str) and isinstance(answer["answer"], str)
        assert not chat.behaviour or set(chat.behaviour) >= set(BEHAVIOUR)
    except FileNotFoundError as error:
        raise PrerequisiteError(
            f"there is no chat evaluation at {file}",
            hint="Name a run whose recipe has the stage chat_eval, or its eval/chat.json.",
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        raise SchemaError(
            f"{file} is not a chat evaluation ({type(error).__name__}: {str(error)[:200]})",
            hint="Name a run whose recipe has the stage chat_eval, or its eval/chat.json.",
        ) from error
    return chat


def table(chats: Sequence[Chat]) -> list[tuple[str, list[float | None]]]:
    """(row, a value per run): centred accuracy of each task, their mean (the chat score), ChatCORE
    where all its tasks were asked by nanochat's rules, turns ended by task, then the behaviour.
    """
    names = dict.fromkeys(name for chat in chats for name in chat.document["tasks"])
    rows: list[tuple[str, list[float | None]]] = []
    for name in names:
        tasks = [chat.document["tasks"].get(name, {}) for chat in chats]
        if any(task.get("centered") is not None for task in tasks):
            rows.append((name, [task.get("centered") for task in tasks]))
    aggregates = [chat.document.get("aggregate") or {} for chat in chats]
    rows.append(("chat score", [aggregate.get("centered") for aggregate in aggregates]))
    rows.append(("ChatCORE", [_chatcore(chat) for chat in chats]))
    for name in names:
        tasks = [chat.document["tasks"].get(name, {}) for chat in chats]
        if any(task.get("ended_rate") is not None for task in tasks):
            rows.append((f"{name}: turns ended", [task.get("ended_rate") for task in tasks]))
    for figure, (label, _) in BEHAVIOUR.items():
        rows.append((label, [chat.behaviour.get(figure) for chat in chats]))
    return rows


def remark(chats: Sequence[Chat]) -> str:
    """What the chat score is not, and why a run has no ChatCORE."""
    text = (
        "The chat score is the mean over the tasks asked, of answers that end their turn; it is "
        "not nanochat's ChatCORE."
    )
    for chat in chats:
        found = chat.document.get("chatcore") or {}
        if found.get("value") is not None:
            differs = "; ".join(map(str, found.get("differs") or ()))
            text += f" ChatCORE of {chat.name} differs from nanochat's in: {differs}."
        else:
            reason = found.get("reason") or "the evaluation does not state it"
            text += f" {chat.name} has no ChatCORE: {reason}."
    return text


def _chatcore(chat: Chat) -> float | None:
    value = (chat.document.get("chatcore") or {}).get("value")
    return float(value) if isinstance(value, int | float) else None


def page(chats: Sequence[Chat]) -> str:
    """One self-contained page. Every word that a model or a file wrote is escaped."""
    heads = "".join(f'<th scope="col">{escape(chat.name)}</th>' for chat in chats)
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(f"<td>{'-' if value is None else f'{value:.3f}'}</td>" for value in values)
        + "</tr>"
        for name, values in table(chats)
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'\">"
        f"<title>Chat: {escape(' and '.join(chat.name for chat in chats))}</title>"
        f"<style>{_STYLE}</style></head><body><main><h1>Chat evaluation</h1>"
        '<p class="quiet">Tasks: centred accuracy, 0 is guessing and 1 is all right. Behaviour: '
        "shares of the same fixed prompts, answered greedily; it is not part of the score. "
        f"{escape(remark(chats))}</p>"
        '<div class="scroll"><table><thead><tr><th scope="col"></th>'
        f"{heads}</tr></thead><tbody>{rows}</tbody></table></div>{_answers(chats)}"
        "</main></body></html>\n"
    )


def _answers(chats: Sequence[Chat]) -> str:
    prompts = dict.fromkeys(
        answer["prompt"] for chat in chats for answer in chat.behaviour.get("answers", ())
    )
    if not prompts:
        return ""
    parts = []
    for prompt in prompts:
        cells = ""
        for chat in chats:
            given = [a for a in chat.behaviour.get("answers", ()) if a["prompt"] == prompt]
            for answer in given:
                cells += (
                    f"<figure><figcaption>{escape(chat.name)}{_marks(answer)}</figcaption>"
                    f"<blockquote>{escape(answer['answer']) or '<em>nothing</em>'}</blockquote>"
                    "</figure>"
                )
        parts.append(f'<section><h3>{escape(prompt)}</h3><div class="row">{cells}</div></section>')
    return f"<h2>Answers</h2>{''.join(parts)}"


def _marks(answer: Mapping[str, Any]) -> str:
    marks = []
    if answer.get("followed") is not None:
        followed = bool(answer["followed"])
        marks.append(("good" if followed else "bad", "followed" if followed else "not followed"))
    if not answer.get("ended"):
        marks.append(("bad", "turn not ended"))
    if answer.get("looping"):
        marks.append(("bad", "loops"))
    return "".join(f' <span class="{tone}">{text}</span>' for tone, text in marks)


_STYLE = """
:root { color-scheme: light dark; --line: #8883; --good: #17703a; --bad: #b3261e;
  font: 16px/1.5 system-ui, sans-serif; }
@media (prefers-color-scheme: dark) { :root { --good: #6fcf97; --bad: #ff9a90; } }
body { margin: 0; } main { max-width: 64rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
h3 { font-size: 1rem; margin: 0 0 .5rem; }
.quiet { opacity: .75; max-width: 44rem; } .scroll { overflow-x: auto; }
table { border-collapse: collapse; min-width: 50%; }
th, td { padding: .3rem 1.2rem .3rem 0; border-bottom: 1px solid var(--line); text-align: left; }
td { font-variant-numeric: tabular-nums; } tbody th { font-weight: 500; }
section { border-top: 1px solid var(--line); padding: 1rem 0; }
.row { display: grid; grid-template-columns: repeat(auto-fit, minmax(16rem, 1fr)); gap: 1rem; }
figure { margin: 0; min-width: 0; } figcaption { font-size: .8125rem; opacity: .9; }
blockquote { margin: .3rem 0 0; padding-left: .8rem; border-left: 3px solid var(--line);
  white-space: pre-wrap; overflow-wrap: anywhere; }
.good { color: var(--good); } .bad { color: var(--bad); } .good, .bad { margin-left: .5rem; }
"""
