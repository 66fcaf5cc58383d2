from __future__ import annotations

import hashlib
import json
import random
import types
from pathlib import Path
from time import CLOCK_BOOTTIME, clock_gettime_ns

import pytest
import torch
from support.tiny_training import Recorder

from reference.chat import evaluation as chat_eval
from reference.chat.conversation import render, render_prompt
from reference.chat.engine import Sampling
from reference.chat.evaluation import (
    Question,
    Task,
    batches_by_length,
    evaluate_task,
    find_tasks,
    summarize,
)
from reference.chat.scoring import chatcore, final_number, is_right, right_by_nanochat
from reference.chat.session import Session, find_checkpoint
from reference.errors import TrainerError
from reference.model.gpt import GPT, ModelConfig
from reference.request import Request
from reference.stage import Stopped
from reference.tokenizer.bpe import Tokenizer
from reference.train.checkpoint import save_model


class Parrot(GPT):
    """Continues every known text as told: probability one for the next token of a script."""

    def __init__(self, config: ModelConfig, scripts: list[list[int]]) -> None:
        super().__init__(config)
        self.init_weights(0)
        self.scripts = scripts

    def hidden(self, tokens, cache=None):
        B, T = tokens.shape
        if cache is not None:
            counts = cache._counts or [T] * B
            for row in range(B):
                history = self.histories.setdefault(row, [])
                history += tokens[row, : counts[row]].tolist()
            cache._counts = None
            seen = [self.histories[row] for row in range(B)]
            answers = [[self.follow(s)] * T for s in seen]
        else:
            answers = [[self.follow(row[: t + 1].tolist()) for t in range(T)] for row in tokens]
        return torch.tensor(answers)[..., None].float()

    def follow(self, ids: list[int]) -> int:
        for script in self.scripts:
            if len(script) > len(ids) and script[: len(ids)] == ids:
                return script[len(ids)]
        return 33  # "!"

    def logits(self, hidden):
        return torch.nn.functional.one_hot(hidden[..., 0].long(), self.config.vocab_size).float()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["a"], 265)  # bytes


def parrot(tokenizer: Tokenizer, answers: dict[str, str | None]) -> Parrot:
    """A model that answers the given questions, and with "!" for ever where the answer is None."""
    scripts = [
        render(
            tokenizer,
            [{"role": "user", "content": q}, {"role": "assistant", "content": a}],
        ).ids
        for q, a in answers.items()
        if a is not None
    ]
    config = ModelConfig(tokenizer.vocab_size, n_layer=1, n_embd=32, n_head=2, n_kv_head=2)
    model = Parrot(config, scripts)
    model.histories = {}
    return model


def ask(model: Parrot, tokenizer: Tokenizer, kind: str, questions: list[Question], new: int = 12):
    """Evaluates question by question, as the parrot keeps no batch apart."""
    results = []
    for question in questions:
        model.histories = {}
        results.append(evaluate_task(model, tokenizer, Task("t", kind, (question,)), new))
    return results


def test_exact_answers_count_only_when_the_turn_ends(tokenizer: Tokenizer) -> None:
    model = parrot(tokenizer, {"a?": "The owl.", "b?": "the  fox", "c?": None})
    questions = [
        Question("a?", "The owl", 0.25),
        Question("b?", "the fox.", 0.25),
        Question("c?", "!", 0.25),
        Question("a?", "owl", 0.25),
    ]
    results = ask(model, tokenizer, "exact", questions)
    assert [r.outcomes for r in results] == [[1], [1], [0], [0]]
    assert [r.ended_rate for r in results] == [1.0, 1.0, 0.0, 1.0]
    assert results[0].centered == 1.0 and results[3].centered == pytest.approx(-1 / 3)


def test_choices_compare_the_letters_only(tokenizer: Tokenizer) -> None:
    folder_row = {"question": "Which?", "choices": ["x", "y", "z"], "answer": 1}
    task = chat_eval.make_task("arc", [folder_row], -1, Path("arc.jsonl"))
    question = task.questions[0]
    assert question.prompt == (
        "Multiple Choice question: Which?\n- x=A\n- y=B\n- z=C\n\n"
        "Respond only with the letter of the correct answer."
    )
    assert question.baseline == pytest.approx(1 / 3)
    for said, outcome in (("B", 1), ("C", 0), ("!", 0)):
        model = parrot(tokenizer, {question.prompt: said})
        result = evaluate_task(model, tokenizer, task, 5)
        assert result.outcomes == [outcome]
        assert result.ended_rate is None


def test_letters_of_the_file_are_used(tokenizer: Tokenizer) -> None:
    row = {"question": "q", "choices": ["x", "y"], "letters": ["1", "2"], "answer": 0}
    question = chat_eval.make_task("arc", [row], -1, Path("a")).questions[0]
    assert "- x=1\n- y=2" in question.prompt and question.answer == "1"


def test_free_form_tasks_measure_only_whether_turns_end(tokenizer: Tokenizer) -> None:
    model = parrot(tokenizer, {"a?": "anything", "b?": None})
    results = ask(model, tokenizer, "free", [Question("a?", ""), Question("b?", "")])
    assert [r.ended_rate for r in results] == [1.0, 0.0]
    assert [r.accuracy for r in results] == [None, None]
    assert results[0].baseline is None and results[0].centered is None


def test_answers_longer_than_the_limit_have_not_ended(tokenizer: Tokenizer) -> None:
    model = parrot(tokenizer, {"a?": "12345"})
    short, enough = (
        ask(model, tokenizer, "exact", [Question("a?", "12345")], new)[0] for new in (5, 6)
    )
    assert (short.ended_rate, enough.ended_rate) == (0.0, 1.0)
    assert (short.outcomes, enough.outcomes) == ([0], [1])


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so 3 + 4 = 7\n#### 7", "7"),
        ("#### 1,234", "1234"),
        ("#### -5.50", "-5.50"),
        ("#### 18.00", "18"),
        ("it is $42.", "42"),
        ("12 then 13", "13"),
        ("#### nothing, 9 before", "9"),
        ("none", None),
    ],
)
def test_final_number(text: str, number: str | None) -> None:
    assert final_number(text) == number


@pytest.mark.parametrize(
    ("kind", "said", "expected", "right"),
    [
        ("number", "6 x 7 = <<6*7=42>>42\n#### 42", "... #### 42", True),
        ("number", "#### 41", "... 42\n#### 42", False),
        ("number", "no idea", "#### 42", False),
        ("spelling", "owl:o,w,l", "o,w,l", True),
        ("spelling", "o, w, l", "o,w,l", True),
        ("spelling", "owl:o,w,w,l", "o,w,l", False),
        ("spelling", "1:o\n2:w\n\nSo there is 1.\n\n#### 1", "1", True),
        ("spelling", "#### 2", "1", False),
        ("exact", " The owl eats  mice ", "The owl eats mice.", True),
        ("exact", "the owl eats mice", "The owl eats mice.", False),
    ],
)
def test_rules(kind: str, said: str, expected: str, right: bool) -> None:
    assert is_right(kind, said, expected) is right


def write(folder: Path, **tasks: list[dict]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, rows in tasks.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


FILES = {
    "gsm8k_test": [{"question": "1+1?", "answer": "1+1=2\n#### 2"}],
    "spelling": [{"kind": "spell", "question": "Spell the word: a", "answer": "a"}],
    "arc": [{"question": "q", "choices": ["x", "y"], "answer": 0}],
    "dolly": [{"question": "Why?", "answer": "Because."}],
    "orders": [{"instruction": "Shorten.", "input": "A text", "reference": "Text"}],
    "facts": [{"kind": "exact", "question": "q", "answer": "a", "baseline": 0.5}],
    "mmlu_dev": [{"question": "q", "choices": ["x", "y"], "answer": 0}],
    "humaneval": [{"prompt": "def f():", "entry_point": "f", "canonical_solution": ""}],
}


def test_fields_decide_how_a_task_is_scored(tmp_path: Path) -> None:
    tasks, left_out = find_tasks(write(tmp_path / "x", **FILES))
    assert {task.name: task.kind for task in tasks} == {
        "arc": "choice",
        "dolly": "free",
        "facts": "exact",
        "gsm8k_test": "number",
        "orders": "free",
        "spelling": "spelling",
    }
    assert left_out == [
        "humaneval (needs generated code to be run: chat_eval.run_programs)",
        "mmlu_dev (few-shot examples)",
    ]
    by_name = {task.name: task for task in tasks}
    assert by_name["orders"].questions[0].prompt == "Shorten.\n\nA text"
    assert by_name["facts"].questions[0].baseline == 0.5


def test_capped_tasks_keep_the_same_questions_in_their_order(tmp_path: Path) -> None:
    rows = [{"kind": "exact", "question": str(i), "answer": "a"} for i in range(50)]
    folder = write(tmp_path / "x", many=rows)
    kept = [[q.prompt for q in find_tasks(folder, (), 10)[0][0].questions] for _ in range(2)]
    expected = sorted(random.Random(1337).sample(range(50), 10))
    assert kept == [[str(i) for i in expected]] * 2
    assert len(find_tasks(folder, (), -1)[0][0].questions) == 50
    assert len(find_tasks(folder, (), 60)[0][0].questions) == 50


@pytest.mark.parametrize(
    ("names", "files", "message"),
    [
        (["nope"], FILES, r"has no nope\.jsonl"),
        (["humaneval"], FILES, "cannot be scored: needs generated code"),
        ([], {}, "no questions that can be scored"),
        (
            [],
            {"bad": [{"question": "q", "choices": ["x"], "answer": 4}]},
            "line 1: not a valid choice",
        ),
        ([], {"bad": [FILES["facts"][0], {"kind": "exact"}]}, "line 2: not a valid exact question"),
    ],
    ids=["missing", "code", "none", "index", "field"],
)
def test_unusable_tasks_are_named(tmp_path: Path, names, files, message: str) -> None:
    with pytest.raises(TrainerError, match=message) as caught:
        find_tasks(write(tmp_path / "x", **files), names)
    assert caught.value.hint


def test_broken_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"question": "q", "answer": "a"}\n[1]\n')
    with pytest.raises(TrainerError, match=r"bad\.jsonl, line 2: not a JSON object"):
        find_tasks(tmp_path)


def test_batches_hold_every_prompt_once_within_the_budget() -> None:
    prompts = [[0] * n for n in (5, 50, 7, 7, 90, 1)]
    batches = list(batches_by_length(prompts, 10, 120))
    assert sorted(i for batch in batches for i in batch) == list(range(6))
    for batch in batches:
        longest = max(len(prompts[i]) for i in batch)
        assert len(batch) == 1 or len(batch) * (longest + 10) <= 120
    assert batches[0][0] == 4


def test_summary_averages_scored_tasks_and_all_ends(tokenizer: Tokenizer) -> None:
    model = parrot(tokenizer, {"a?": "yes", "b?": "no"})
    exact = ask(model, tokenizer, "exact", [Question("a?", "yes", 0.5)])[0]
    wrong = ask(model, tokenizer, "exact", [Question("b?", "yes", 0.5)])[0]
    free = ask(model, tokenizer, "free", [Question("c?", "")])[0]
    assert summarize({"a": exact, "b": wrong, "c": free}) == {
        "centered": 0.0,  # (1 + -1) / 2
        "accuracy": 0.5,
        "ended_rate": pytest.approx(2 / 3),
        "questions": 3,
    }
    assert summarize({"c": free})["centered"] is None


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a small random chat model."""
    root = tmp_path_factory.mktemp("run")
    tokenizer = Tokenizer.train(["the owl eats mice"] * 3, 280)
    tokenizer.save(root / "tokenizer")
    config = ModelConfig(tokenizer.vocab_size, n_layer=2, n_embd=32, n_head=2, n_kv_head=2)
    model = GPT(config)
    model.init_weights(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.manual_seed(1)))
    save_model(root / "checkpoints" / "sft", model.place("cpu"), config, root / "tokenizer")
    return root


def request(run: Path, tasks: Path, out: Path, seconds: float = 600) -> Request:
    now = clock_gettime_ns(CLOCK_BOOTTIME)
    section = {"tasks": [], "max_per_task": 3, "max_new_tokens": 4, "run_programs": False}
    document = {
        "contract": 1, "stage": "chat_eval", "run_id": "r", "seed": 1, "attempt": 0,
        "device": "cpu", "threads": 1,
        "recipe": {"model": {"dtype": "auto"}, "chat_eval": section},
        "paths": {
            "out": str(out), "chat": str(run / "checkpoints" / "sft"), "chat_eval": str(tasks),
        },
        "clock": {
            "start_ns": now, "stage_start_ns": now,
            "deadline_ns": now + int(seconds * 1e9), "budget_s": 600.0,
        },
    }  # fmt: skip
    path = tasks.parent / "request.json"
    path.write_text(json.dumps(document))
    return Request.load(path)


def test_stage_writes_outcomes_and_reports_the_files_digest(
    chat_model: Path, tmp_path: Path
) -> None:
    events = Recorder()
    tasks = write(tmp_path / "tasks", **FILES)
    chat_eval.run(request(chat_model, tasks, tmp_path / "eval"), events)
    data = (tmp_path / "eval" / "chat.json").read_bytes()
    document = json.loads(data)
    assert set(document["tasks"]) == {"arc", "dolly", "facts", "gsm8k_test", "orders", "spelling"}
    for result in document["tasks"].values():
        assert len(result["outcomes"]) == result["n"] and set(result["outcomes"]) <= {0, 1}
        generated = result["kind"] != "choice"
        assert len(result["ended"]) == (result["n"] if generated else 0)
        assert (result["baseline"] is None) == (result["kind"] == "free")
    evals = [data for ev, data in events.seen if ev == "eval"]
    assert [e["task"] for e in evals[1:-1]] == sorted(document["tasks"])
    assert document["asked_share"] == 1.0
    answers = document["behaviour"].pop("answers")
    assert len(answers) == 32
    assert evals[0] == {
        "name": "behaviour",
        "value": document["behaviour"]["followed"],
        **document["behaviour"],
    }
    assert evals[-1]["name"] == "chat"
    assert evals[-1]["sha256"] == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert any("humaneval" in data["text"] for ev, data in events.seen if ev == "note")
    first = data
    chat_eval.run(request(chat_model, tasks, tmp_path / "eval"), Recorder())
    assert (tmp_path / "eval" / "chat.json").read_bytes() == first


def test_stage_stops_when_asked_and_at_the_deadline(
    chat_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = write(tmp_path / "tasks", **FILES)
    with pytest.raises(TrainerError, match="budget was over") as caught:
        chat_eval.run(request(chat_model, tasks, tmp_path / "eval", seconds=0), Recorder())
    assert caught.value.kind == "deadline"
    monkeypatch.setattr(chat_eval, "stop_requested", lambda: True)
    with pytest.raises(Stopped):
        chat_eval.run(request(chat_model, tasks, tmp_path / "eval"), Recorder())
    assert not (tmp_path / "eval" / "chat.json").exists()


# The chat session and command


def test_session_streams_what_the_model_says_and_keeps_the_conversation(
    tokenizer: Tokenizer,
) -> None:
    model = parrot(tokenizer, {"Hi": "Grüß dich, 🦊!"})
    session = Session(model, tokenizer, Sampling(max_new_tokens=40))
    pieces = list(session.ask("Hi"))
    assert "".join(pieces) == "Grüß dich, 🦊!" and "🦊" in pieces
    assert session.ended
    assert session.messages == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Grüß dich, 🦊!"},
    ]


def test_broken_off_answer_is_kept_as_far_as_it_got(tokenizer: Tokenizer) -> None:
    session = Session(parrot(tokenizer, {}), tokenizer, Sampling(max_new_tokens=40))
    pieces = session.ask("Hi")
    assert next(pieces) + next(pieces) == "!!"
    pieces.close()
    assert session.messages[-1] == {"role": "assistant", "content": "!!"}
    assert not session.ended


def test_checkpoint_is_found_in_a_run_folder_and_as_itself(
    chat_model: Path, tmp_path: Path
) -> None:
    folder = chat_model / "checkpoints" / "sft"
    assert find_checkpoint(chat_model) == folder == find_checkpoint(folder)
    with pytest.raises(TrainerError, match="is not a run folder or a checkpoint"):
        find_checkpoint(tmp_path)
    with pytest.raises(TrainerError, match="there is no folder"):
        find_checkpoint(tmp_path / "none")


def test_command_answers_one_prompt_and_says_the_same_again(chat_model: Path) -> None:
    from click.testing import CliRunner

    from reference.commands import chat

    arguments = [str(chat_model), "--prompt", "What?", "--max-new-tokens", "5", "--seed", "3"]
    first, second = (CliRunner().invoke(chat, arguments) for _ in range(2))
    assert first.exit_code == 0, first.output
    assert first.stdout == second.stdout and first.stdout.strip()


def test_command_reads_lines_until_the_end_of_input(chat_model: Path) -> None:
    from click.testing import CliRunner

    from reference.commands import chat

    arguments = [str(chat_model), "--max-new-tokens", "3", "--temperature", "0"]
    result = CliRunner().invoke(chat, arguments, input="one\n\ntwo\n")
    assert result.exit_code == 0, result.output
    assert result.stderr.count("you>") >= 3


def test_command_says_what_is_wrong_with_a_folder(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from reference.commands import chat

    result = CliRunner().invoke(chat, [str(tmp_path)])
    assert result.exit_code == 2
    assert "is not a run folder or a checkpoint" in result.stderr and "hint:" in result.stderr


def test_prompt_of_the_model_under_test_is_a_rendered_conversation(tokenizer: Tokenizer) -> None:
    prompt = render_prompt(tokenizer, [{"role": "user", "content": "a?"}])
    assert tokenizer.decode(prompt) == "<|bos|><|user_start|>a?<|user_end|><|assistant_start|>"


@pytest.mark.parametrize(
    ("said", "ours", "nanochats"),
    [
        ("So it is\n#### 1,042", True, True),
        ("#### 1042\n#### 7", False, True),
        ("It is 1042.", True, False),
        ("#### 1042.0", True, False),
        ("####1042", True, False),
        ("", False, False),
    ],
)
def test_gsm8k_by_our_rule_and_by_nanochats(said: str, ours: bool, nanochats: bool) -> None:
    answer = "521 x 2 = <<521*2=1042>>1042\n#### 1,042"
    assert is_right("number", said, answer) is ours
    assert right_by_nanochat(said, answer) is nanochats


def test_chatcore_is_stated_where_all_five_tasks_were_asked_in_full() -> None:
    shares = {
        "arc_easy_test": (2376, 0.55), "arc_challenge_test": (1172, 0.4), "mmlu_test": (14042, 0.4),
        "gsm8k_test": (1319, 0.1), "humaneval": (164, 0.05), "spelling": (9, None),
    }  # fmt: skip
    found = chatcore(shares, 512)
    assert found["value"] == pytest.approx((0.4 + 0.2 + 0.2 + 0.1 + 0.05) / 5)
    assert found["reason"] is None and found["differs"] == ["no calculator while answering"]
    del shares["humaneval"]
    shares["mmlu_test"] = (100, 0.4)
    found = chatcore(shares, 256)
    assert found["value"] is None
    assert found["reason"] == (
        "not asked in full: mmlu (100 of 14,042 questions), humaneval (0 of 164 questions)"
    )
    assert "256 tokens" in found["differs"][1]


def test_the_turns_end_is_reported_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    class Said:
        def __init__(self, text: str, ended: bool) -> None:
            self.ids, self.ended = text, ended

    class Words:
        special = types.MappingProxyType({"<|assistant_end|>": 0})

        @staticmethod
        def decode(ids: str) -> str:
            return ids

    said = [Said("#### 2", True), Said("#### 2", False), Said("2", True), Said("#### 3", True)]
    model = type("Model", (), {"device": torch.device("cpu")})()
    monkeypatch.setattr(chat_eval, "render_prompt", lambda *_: [1])
    monkeypatch.setattr(chat_eval, "generate", lambda *_: said)
    task = Task("gsm8k_test", "number", (Question("1+1?", "#### 2"),) * 4)
    result = evaluate_task(model, Words(), task, 8)  # type: ignore[arg-type]
    assert (result.accuracy, result.right_rate, result.nanochat) == (0.5, 0.75, 0.5)
    assert (result.ended_rate, result.outcomes, result.ended) == (0.75, [1, 0, 1, 0], [1, 0, 1, 1])


def test_programs_are_scored_only_when_the_recipe_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {**FILES["humaneval"][0], "test": "def check(f):\n    assert f() == 1"}
    folder = write(tmp_path / "x", humaneval=[row])
    with pytest.raises(TrainerError, match="no questions that can be scored"):
        find_tasks(folder)
    monkeypatch.setattr(chat_eval, "why_not_here", lambda: None)
    [task], left_out = find_tasks(folder, run_programs=True)
    assert (task.kind, left_out) == ("program", [])
    assert task.questions[0].prompt == "def f():"
    monkeypatch.setattr(chat_eval, "pass_all", lambda programs, _: ["return 1" in programs[0]])
    assert chat_eval.judge("program", task.questions, ["def f():\n    return 1"], 1) == [True]
    monkeypatch.setattr(chat_eval, "why_not_here", lambda: "not this kernel")
    with pytest.raises(TrainerError, match="cannot be scored: not this kernel"):
        find_tasks(folder, ["humaneval"], run_programs=True)
