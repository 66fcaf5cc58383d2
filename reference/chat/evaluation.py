"""Stage `chat_eval`: questions to the chat model, scored by rule, one outcome a question.

A task is a JSONL file in the chat_eval folder; the fields of its rows say how it is scored:

    choice    question, choices, answer (index): the likeliest of the choices' letters, right after
              the prompt; nothing is generated
    number    question, answer ending in "#### N": the last number after the answer's "####", or
              the last one at all
    spelling  kind spell or count, question, answer: the letters, or the number as above
    exact     kind exact, question, answer, baseline: the answer itself, spaces and a final period
              apart
    free      anything else with a question or an instruction: only whether the turn ends is
              measured, as no rule here can judge the text
    program   prompt, test, entry_point (HumanEval): the answer's code passes its tests. Only with
              `chat_eval.run_programs`, as that means running code that the model wrote

Few-shot examples (`*_dev`) are left alone. A `note` names what is left out.

`accuracy` counts what is right and ends its turn, `right_rate` what is right, and `nanochat` what
nanochat's rule counts (`reference/chat/scoring.py`, also for ChatCORE). `ended_rate` is the share
of generated answers that end with `<|assistant_end|>` within max_new_tokens. A model that does not
hand the turn back is not usable, however right it is. How the model behaves otherwise is measured
on fixed prompts (`reference/chat/behaviour.py`), beside the score.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from reference.chat.behaviour import evaluate_behaviour
from reference.chat.behaviour import figures as behaviour_figures
from reference.chat.behaviour import to_json as behaviour_to_json
from reference.chat.conversation import render_prompt
from reference.chat.engine import Sampling, generate, next_token_logits
from reference.chat.programs import pass_all, program_of, why_not_here
from reference.chat.scoring import Kind, chatcore, is_right, right_by_nanochat
from reference.errors import TrainerError
from reference.events import Events
from reference.files import write_whole
from reference.model.gpt import GPT
from reference.request import Request
from reference.rows.json_lines import files_by_stem, json_lines
from reference.stage import Stopped, stop_requested
from reference.tokenizer.bpe import Tokenizer
from reference.train.checkpoint import load_model
from reference.train.device import set_up_device

CHOICE_SEED = 1337  # which questions a capped task keeps: the same ones in every run
BATCH_TOKENS = {"cpu": 8192, "cuda": 131072}  # prompt and answer tokens of one batch
MAX_BATCH = 256
END_S = 15.0  # of the stage, for writing what was found
ROWS_HINT = "Each line is one JSON object."


@dataclass(frozen=True)
class Question:
    """One question: what is said to the model, what it should say, and what a guess would score.

    `row` is the row of a program, with its tests.
    """

    prompt: str
    answer: str
    baseline: float = 0.0
    letters: tuple[str, ...] = ()
    row: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Task:
    """A file of questions that are scored alike."""

    name: str
    kind: Kind
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class TaskResult:
    """What eval/chat.json says about a task.

    Attributes:
        accuracy, baseline, centered: None for free-form tasks; centered is 0 at the baseline and
            1 when all is right.
        ended_rate: None where nothing is generated.
        outcomes: 1 for right (free-form: for ended) in the order of the questions asked.
        ended: 1 where the answer ended its turn; empty where nothing is generated.
        right_rate: As accuracy, whether or not the turn ended.
        nanochat: Share right by nanochat's rule; None for tasks that it does not have.
    """

    kind: Kind
    n: int
    accuracy: float | None
    baseline: float | None
    centered: float | None
    ended_rate: float | None
    outcomes: list[int]
    ended: list[int]
    right_rate: float | None = None
    nanochat: float | None = None


def run(request: Request, events: Events) -> None:
    """Leaves `chat.json` in `paths.out`. Started again it asks all questions again."""
    from reference.chat.rounds import ask_in_rounds  # which builds on this module

    section = request.recipe["chat_eval"]
    device = set_up_device(request)
    folder = request.path("chat")
    tokenizer = Tokenizer.load(folder)
    model, _ = load_model(folder, device, request.recipe["model"]["dtype"])
    tasks, left_out = find_tasks(
        request.path("chat_eval"),
        section["tasks"],
        section["max_per_task"],
        run_programs=section["run_programs"],
    )
    if left_out:
        events.emit("note", text="not scored here: " + "; ".join(left_out))

    total = sum(len(task.questions) for task in tasks)

    def ask(task: Task) -> TaskResult:
        return evaluate_task(
            model,
            tokenizer,
            task,
            section["max_new_tokens"],
            check=lambda: check_time(request),
            threads=request.threads,
        )

    # First, since what is left of the time then goes to the questions.
    behaviour = evaluate_behaviour(
        model, tokenizer, section["max_new_tokens"], check=lambda: check_time(request)
    )
    shown = behaviour_figures(behaviour)
    events.emit("eval", name="behaviour", value=shown["followed"], **shown)
    by_time = section.get("hours", 0) > 0
    asked = ask_in_rounds(
        tasks,
        ask,
        lambda: (request.remaining_s() - END_S) if by_time else math.inf,
        lambda so_far: events.emit(
            "progress", done=round(total * so_far.share), total=total, unit="questions"
        ),
    )
    results = asked.results
    for name, result in results.items():
        summary = {k: v for k, v in asdict(result).items() if k not in ("outcomes", "ended")}
        value = result.accuracy if result.accuracy is not None else result.ended_rate
        events.emit("eval", name="chat_task", task=name, value=value, **summary)
    if asked.share < 1:
        events.emit("note", text=f"the time allowed {asked.share:.0%} of the chat questions")

    aggregate = summarize(results)
    document = {
        "format": 1,
        "tasks": {name: asdict(result) for name, result in results.items()},
        "aggregate": aggregate,
        "chatcore": chatcore(
            {name: (result.n, result.nanochat) for name, result in results.items()},
            section["max_new_tokens"],
        ),
        "behaviour": behaviour_to_json(behaviour),
        "asked_share": asked.share,
        "max_per_task": section["max_per_task"],
        "max_new_tokens": section["max_new_tokens"],
        "left_out": left_out,
        "tokenizer": tokenizer.digest,
    }
    data = (json.dumps(document, indent=1) + "\n").encode()
    write_whole(request.path("out") / "chat.json", data)
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    value = aggregate["centered"]
    if value is None:
        value = aggregate["ended_rate"]
    events.emit("eval", name="chat", value=value, file="eval/chat.json", sha256=digest, **aggregate)


def check_time(request: Request) -> None:
    """Called between batches; ends the stage when it has to stop."""
    if stop_requested():
        raise Stopped
    if request.remaining_s() <= 0:
        raise TrainerError(
            "deadline",
            "the budget was over before all chat questions were asked",
            "Lower chat_eval.max_per_task or max_new_tokens in the recipe.",
        )


def _mean(values: Iterable[float | None]) -> float | None:
    """The mean of those that are known; None where none is."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def summarize(results: Mapping[str, TaskResult]) -> dict[str, Any]:
    """Means over the tasks that are scored, and the share of all answers that ended."""
    scored = [result for result in results.values() if result.centered is not None]
    ended = [flag for result in results.values() for flag in result.ended]
    return {
        "centered": _mean(result.centered for result in scored),
        "accuracy": _mean(result.accuracy for result in scored),
        "ended_rate": statistics.fmean(ended) if ended else None,
        "questions": sum(result.n for result in results.values()),
    }


# Tasks


def find_tasks(
    folder: Path,
    names: Sequence[str] = (),
    max_per_task: int = -1,
    *,
    run_programs: bool = False,
) -> tuple[list[Task], list[str]]:
    """The tasks in `folder`, in the order of names, and what is left out and why.

    Args:
        names: Files to use, by stem; empty: all that can be scored.
        max_per_task: Questions kept of each task; -1: all.
        run_programs: Also score tasks whose answers are programs, by running them.

    Raises:
        TrainerError: No task, a missing one, one that cannot be scored, or a broken line.
    """
    files = files_by_stem(folder)
    missing = [name for name in names if name not in files]
    if missing:
        raise TrainerError(
            "bad_input",
            f"{folder} has no {', '.join(f'{name}.jsonl' for name in missing)}",
            f"Found: {', '.join(files) or 'nothing'}. Correct chat_eval.tasks in the recipe.",
        )
    tasks, left_out = [], []
    for name, path in files.items():
        if names and name not in names:
            continue
        rows = read_rows(path)
        reason = why_not(name, rows, run_programs)
        if reason is None:
            tasks.append(make_task(name, rows, max_per_task, path))
        elif names:
            raise TrainerError(
                "bad_input", f"{path} cannot be scored: {reason}", "Leave it out of the recipe."
            )
        else:
            left_out.append(f"{name} ({reason})")
    if not tasks:
        raise TrainerError(
            "bad_input",
            f"{folder} holds no questions that can be scored",
            "It needs JSONL files; reference/chat/evaluation.py lists their fields.",
        )
    return tasks, left_out


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file."""
    rows = []
    for number, row in json_lines(path, ROWS_HINT):
        if not isinstance(row, dict):
            message = f"{path}, line {number}: not a JSON object"
            raise TrainerError("bad_input", message, ROWS_HINT)
        rows.append(row)
    return rows


def why_not(name: str, rows: Sequence[Mapping[str, Any]], run_programs: bool = False) -> str | None:
    """The reason why a file is not scored; None if it is."""
    if not rows:
        return "empty"
    if name.endswith("_dev"):
        return "few-shot examples"
    if kind_of(rows[0]) != "program":
        return None
    if not run_programs:
        return "needs generated code to be run: chat_eval.run_programs"
    return why_not_here()


def make_task(name: str, rows: Sequence[Mapping[str, Any]], max_per_task: int, path: Path) -> Task:
    """The task of `rows`, all scored as the first one is."""
    numbers = list(range(len(rows)))
    if 0 <= max_per_task < len(rows):
        numbers = sorted(random.Random(CHOICE_SEED).sample(numbers, max_per_task))
    kind = kind_of(rows[0])
    questions = []
    for number in numbers:
        try:
            questions.append(_QUESTIONS[kind](rows[number]))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise TrainerError(
                "bad_input",
                f"{path}, line {number + 1}: not a valid {kind} question "
                f"({type(error).__name__}: {error})",
                "Give every row the same fields as the file's first row.",
            ) from error
    return Task(name, kind, tuple(questions))


def kind_of(row: Mapping[str, Any]) -> Kind:
    if "canonical_solution" in row or "entry_point" in row:
        return "program"
    if "choices" in row:
        return "choice"
    if row.get("kind") in ("spell", "count"):
        return "spelling"
    if row.get("kind") == "exact":
        return "exact"
    if "####" in str(row.get("answer", "")):
        return "number"
    return "free"


def _choice_question(row: Mapping[str, Any]) -> Question:
    choices = row["choices"]
    letters = tuple(row.get("letters") or "ABCDEFGHIJ"[: len(choices)])
    lines = [f"- {choice}={letter}" for choice, letter in zip(choices, letters, strict=True)]
    # The form of the ARC and MMLU conversations in the fine-tuning data.
    prompt = "\n".join(
        [
            f"Multiple Choice question: {row['question']}",
            *lines,
            "",
            "Respond only with the letter of the correct answer.",
        ]
    )
    return Question(prompt, letters[row["answer"]], 1 / len(choices), letters)


def _exact_question(row: Mapping[str, Any]) -> Question:
    return Question(row["question"], row["answer"], float(row.get("baseline", 0.0)))


def _plain_question(row: Mapping[str, Any]) -> Question:
    return Question(row["question"], row["answer"])


def _free_question(row: Mapping[str, Any]) -> Question:
    parts = [row["question"] if "question" in row else row["instruction"], row.get("input", "")]
    return Question("\n\n".join(part for part in parts if part), "")


def _program_question(row: Mapping[str, Any]) -> Question:
    program_of(row, "")  # has all it takes
    return Question(row["prompt"], "", row=row)


_QUESTIONS: dict[Kind, Callable[[Mapping[str, Any]], Question]] = {
    "choice": _choice_question,
    "number": _plain_question,
    "spelling": _plain_question,
    "exact": _exact_question,
    "free": _free_question,
    "program": _program_question,
}


# Scoring


def evaluate_task(
    model: GPT,
    tokenizer: Tokenizer,
    task: Task,
    max_new_tokens: int,
    *,
    check: Callable[[], None] = lambda: None,
    threads: int = 1,
) -> TaskResult:
    """Asks all questions of `task`.

    Args:
        check: Called before every batch; what it raises ends the evaluation.
        threads: Programs run at a time.
    """
    prompts = [
        render_prompt(tokenizer, [{"role": "user", "content": question.prompt}])
        for question in task.questions
    ]
    right = [0] * len(prompts)
    ended = [0] * len(prompts)
    alike = [0] * len(prompts)  # right by nanochat's rule
    new_tokens = 0 if task.kind == "choice" else max_new_tokens
    for batch in batches_by_length(
        prompts, new_tokens, BATCH_TOKENS.get(model.device.type, BATCH_TOKENS["cpu"])
    ):
        check()
        asked = [task.questions[i] for i in batch]
        if task.kind == "choice":
            logits = next_token_logits(model, [prompts[i] for i in batch])  # (B, V)
            for i, question, row in zip(batch, asked, logits, strict=True):
                ids = [tokenizer.encode([letter])[0][0] for letter in question.letters]
                chosen = question.letters[int(row[ids].argmax())]
                right[i] = alike[i] = int(chosen == question.answer)
            continue
        answers = generate(
            model,
            [prompts[i] for i in batch],
            Sampling(max_new_tokens),
            {tokenizer.special["<|assistant_end|>"]},
        )
        said = [tokenizer.decode(answer.ids) for answer in answers]
        verdicts = judge(task.kind, asked, said, threads)
        for i, question, answer, text, verdict in zip(
            batch, asked, answers, said, verdicts, strict=True
        ):
            ended[i], right[i] = int(answer.ended), int(verdict)
            by_nanochat = right_by_nanochat(text, question.answer)
            alike[i] = int(by_nanochat if task.kind == "number" else verdict)
    generated = task.kind != "choice"
    # An answer that did not end counts as wrong, even if it begins well.
    outcomes = [a & b for a, b in zip(right, ended, strict=True)] if generated else right
    scored = task.kind != "free"
    accuracy = statistics.fmean(outcomes) if scored else None
    baseline = statistics.fmean(q.baseline for q in task.questions) if scored else None
    return TaskResult(
        kind=task.kind,
        n=len(outcomes),
        accuracy=accuracy,
        baseline=baseline,
        centered=None
        if accuracy is None or baseline is None
        else (accuracy - baseline) / (1 - baseline),
        ended_rate=statistics.fmean(ended) if generated else None,
        outcomes=outcomes,
        ended=ended if generated else [],
        right_rate=statistics.fmean(right) if scored else None,
        nanochat=statistics.fmean(alike) if task.kind in NANOCHAT_KINDS else None,
    )


NANOCHAT_KINDS = ("choice", "number", "program")


def judge(
    kind: Kind, asked: Sequence[Question], said: Sequence[str], threads: int
) -> Sequence[bool]:
    """Whether each answer is right, whether or not its turn ended."""
    if kind == "free":
        return [True] * len(said)
    if kind == "program":
        pairs = zip(asked, said, strict=True)
        return pass_all([program_of(question.row or {}, text) for question, text in pairs], threads)
    return [is_right(kind, text, q.answer) for q, text in zip(asked, said, strict=True)]


def batches_by_length(
    prompts: Sequence[Sequence[int]], new_tokens: int, batch_tokens: int
) -> Iterator[list[int]]:
    """Indices of prompts in batches of like length, longest first, within `batch_tokens`."""
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
    while order:
        longest = len(prompts[order[0]]) + new_tokens
        count = min(MAX_BATCH, max(1, batch_tokens // longest))
        yield order[:count]
        order = order[count:]
