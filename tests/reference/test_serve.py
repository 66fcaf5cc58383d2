"""The OpenAI-compatible server: the real client and curl, limits, batching, and whom it refuses."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator

import pytest

pytest.importorskip("uvicorn", reason="uvicorn is not installed (serve)")
pytest.importorskip("starlette", reason="starlette is not installed (serve)")

from serving import Script, call, post, serving, tiny

from reference.chat.batching import Batcher, Job, QueueFull
from reference.chat.conversation import render_prompt
from reference.chat.engine import Sampling, generate
from reference.chat.protocol import TextStream
from reference.chat.server import MAX_REQUEST_BYTES, Listener
from reference.errors import TrainerError

MODEL, TOKENIZER = tiny()
HELLO = [{"role": "user", "content": "the fox"}]
STOP = {TOKENIZER.special["<|assistant_end|>"], TOKENIZER.bos_id}


@pytest.fixture(scope="module")
def server() -> Iterator[Listener]:
    with serving(Batcher(MODEL), TOKENIZER) as listener:
        yield listener


@pytest.fixture(scope="module")
def client(server: Listener):
    openai = pytest.importorskip("openai", reason="openai is not installed (dev)")
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def expected(messages=HELLO, tokens: int = 12, **sampling) -> str:
    prompt = render_prompt(TOKENIZER, messages)
    return TOKENIZER.decode(generate(MODEL, [prompt], Sampling(tokens, **sampling), STOP)[0].ids)


def test_the_real_client_lists_models_and_gets_our_own_answers(client) -> None:
    assert [model.id for model in client.models.list()] == ["a-run"]
    assert client.models.retrieve("a-run").id == "a-run"
    answer = client.chat.completions.create(model="a-run", messages=HELLO, max_tokens=10)
    assert answer.choices[0].message.content == expected(tokens=10)
    assert answer.choices[0].finish_reason in ("length", "stop")
    assert answer.usage.prompt_tokens == len(render_prompt(TOKENIZER, HELLO))
    assert answer.usage.completion_tokens <= 10
    text = client.completions.create(model="a-run", prompt=["the", "dog"], max_tokens=5)
    ids = [[TOKENIZER.bos_id, *part] for part in TOKENIZER.encode(["the", "dog"])]
    ours = generate(MODEL, ids, Sampling(5), STOP)
    assert [c.text for c in text.choices] == [TOKENIZER.decode(a.ids) for a in ours]
    assert client.completions.create(model="a-run", prompt=ids[0], max_tokens=5).choices[
        0
    ].text == TOKENIZER.decode(ours[0].ids)


def test_a_stream_is_the_same_text_in_pieces(client) -> None:
    pieces, reasons, usage = [], [], None
    for chunk in client.chat.completions.create(
        model="a-run", messages=HELLO, stream=True, stream_options={"include_usage": True}
    ):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            pieces.append(choice.delta.content or "")
            reasons.append(choice.finish_reason)
    assert "".join(pieces) == expected()
    assert [r for r in reasons if r] == reasons[-1:]
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    whole = "".join(
        chunk.choices[0].text
        for chunk in client.completions.create(model="a-run", prompt="the", stream=True)
    )
    assert whole == client.completions.create(model="a-run", prompt="the").choices[0].text


def test_seeds_repeat_answers_and_n_sets_them_apart(client) -> None:
    def ask(**options):
        answer = client.chat.completions.create(
            model="a-run", messages=HELLO, temperature=1.5, max_tokens=12, **options
        )
        return [choice.message.content for choice in answer.choices]

    assert ask(seed=7) == ask(seed=7)
    three = ask(seed=7, n=3)
    assert three[0] == ask(seed=7)[0]
    assert len(set(three)) > 1
    assert len({ask()[0] for _ in range(4)}) > 1  # no seed: another text each time


def test_top_p_leaves_only_the_likeliest() -> None:
    import torch

    from reference.chat.engine import choose, row_generator

    logits = torch.tensor([[0.0, 2.0, 1.9, -3.0]])
    draw = row_generator(0, 0)
    for top_k in (0, 3):
        drawn = {choose(logits, Sampling(1, 1.0, top_k, 0, 0.6), [draw])[0] for _ in range(200)}
        assert drawn == {1, 2}
    assert choose(logits, Sampling(1, 1.0, 0, 0, 1e-9), [draw]) == [1]


def test_curl_gets_an_answer_and_a_stream(server: Listener) -> None:
    if not shutil.which("curl"):
        pytest.skip("no curl: apt-get install curl")
    body = {"model": "a-run", "messages": HELLO, "stream": True}
    done = subprocess.run(
        ["curl", "-sSN", f"{server.url}/v1/chat/completions", "-d", json.dumps(body)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line]
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == expected()


def test_answers_of_requests_that_run_together_are_those_of_each_alone() -> None:
    """Prompts and lengths of all kinds join and leave the batch; greedy and seeded alike."""
    batcher = Batcher(MODEL, max_batch=4)
    prompts = [
        [TOKENIZER.bos_id, *TOKENIZER.encode(["the lazy dog " * (1 + i % 5)])[0]] for i in range(9)
    ]
    samplings = [Sampling(3 + 2 * i, 0.8 * (i % 2), 20 * (i % 3), seed=i) for i in range(9)]
    written: list[list[int]] = [[] for _ in prompts]
    left = threading.Semaphore(0)

    def reporter(i: int):
        def report(token, reason):
            if token is None:
                left.release()
            else:
                written[i].append(token)

        return report

    for i, (prompt, sampling) in enumerate(zip(prompts, samplings, strict=True)):
        batcher.submit([Job(prompt, sampling, STOP, reporter(i))])
    for _ in prompts:
        assert left.acquire(timeout=60)
    batcher.close()
    for prompt, sampling, ids in zip(prompts, samplings, written, strict=True):
        assert ids == generate(MODEL, [prompt], sampling, STOP)[0].ids


def test_a_waiting_room_that_is_full_is_said_so() -> None:
    batcher = Batcher(MODEL, max_batch=1, max_waiting=2)
    jobs = [Job([TOKENIZER.bos_id], Sampling(1), set(), lambda *_: None) for _ in range(3)]
    with pytest.raises(QueueFull):
        batcher.submit(jobs)
    batcher.close()
    full = Script(TOKENIZER)

    def refuse(jobs):
        raise QueueFull

    full.submit = refuse
    with serving(full, TOKENIZER) as listener:
        status, headers, body = call(
            listener, "POST", "/v1/completions", json.dumps({"prompt": "a"}).encode()
        )
    assert status == 429 and headers["retry-after"] == "1"
    assert json.loads(body)["error"]["code"] == "queue_full"


def test_a_failing_model_ends_the_request_and_not_the_server() -> None:
    model, tokenizer = tiny(1)
    batcher = Batcher(model)
    good, model.logits = model.logits, lambda hidden: 1 / 0
    with serving(batcher, tokenizer) as listener:
        status, body = post(listener, "/v1/completions", prompt="a")
        assert status == 500 and "ZeroDivisionError" in body["error"]["message"]
        model.logits = good
        assert post(listener, "/v1/completions", prompt="a")[0] == 200


def test_a_stop_text_ends_the_answer_before_it_and_across_tokens() -> None:
    script = Script(TOKENIZER)
    with serving(script, TOKENIZER) as listener:
        found: list = []
        body = {"messages": HELLO, "stop": ["lazy dog", "###"]}
        thread = threading.Thread(
            target=lambda: found.append(post(listener, "/v1/chat/completions", **body))
        )
        thread.start()
        job = script.next()
        script.say(job, "the quick fox over the la")
        script.say(job, "zy dog. more")
        thread.join(30)
    choice = found[0][1]["choices"][0]
    assert choice["message"]["content"] == "the quick fox over the "
    assert choice["finish_reason"] == "stop"
    assert job.cancelled.is_set()


@pytest.mark.parametrize("stop", [(), ("x",), ("ver the", "dog"), ("🦊!",), ("nowhere",)])
def test_pieces_hold_back_no_more_than_they_must(stop) -> None:
    text = "jumps over the lazy dog. Grüße, 日本 🦊!"
    stream, said = TextStream(TOKENIZER, stop), ""
    for token in TOKENIZER.encode([text])[0]:
        said += stream.feed(token)
        assert text.startswith(said)
    said += stream.finish()
    cut = min((text.find(s) for s in stop if s in text), default=len(text))
    assert said == text[:cut]
    assert stream.stopped == (cut < len(text))


def test_a_client_that_goes_away_frees_its_place() -> None:
    import http.client

    script = Script(TOKENIZER)
    with serving(script, TOKENIZER) as listener:
        for stream in (True, False):
            connection = http.client.HTTPConnection(*listener.socket.getsockname()[:2])
            body = json.dumps({"messages": HELLO, "stream": stream})
            connection.request("POST", "/v1/chat/completions", body)
            job = script.next()
            connection.close()
            for _ in range(1000):
                if job.cancelled.wait(0.01):
                    break
                job.on_token(TOKENIZER.encode(["a"])[0][0], None)
            assert job.cancelled.is_set()


@pytest.mark.parametrize(
    ("path", "fields", "param", "said"),
    [
        ("chat/completions", {}, None, "messages"),
        ("chat/completions", {"messages": []}, "messages", "messages"),
        ("chat/completions", {"messages": [{"role": "user"}]}, "messages", "content"),
        ("chat/completions", {"messages": HELLO * 2}, "messages", "not by 'assistant'"),
        ("chat/completions", {"messages": HELLO, "temperature": 3}, "temperature", "maximum"),
        ("chat/completions", {"messages": HELLO, "temperature": "hot"}, "temperature", "number"),
        ("chat/completions", {"messages": HELLO, "n": 9}, "n", "maximum"),
        ("chat/completions", {"messages": HELLO, "max_tokens": 0}, "max_tokens", "minimum"),
        ("chat/completions", {"messages": HELLO, "stop": ["a"] * 5}, "stop", "at most 4"),
        ("chat/completions", {"messages": HELLO, "top_p": 0}, "top_p", "minimum"),
        ("chat/completions", {"messages": HELLO, "tools": [{}]}, "tools", "not supported"),
        ("chat/completions", {"messages": HELLO, "logprobs": True}, "logprobs", "not supported"),
        ("chat/completions", {"messages": HELLO, "mirostat": 2}, "mirostat", "no parameter"),
        ("completions", {"prompt": []}, "prompt", "prompt"),
        ("completions", {"prompt": [10**6]}, "prompt", "is not below"),
        ("completions", {"prompt": "the " * 200}, "prompt", "model reads 96"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(server, path, fields, param, said) -> None:
    status, body = post(server, f"/v1/{path}", **fields)
    assert status == 400, body
    assert said in body["error"]["message"]
    assert body["error"]["param"] == param
    assert body["error"]["type"] == "invalid_request_error"


def test_the_client_raises_its_own_errors(client) -> None:
    import openai

    with pytest.raises(openai.NotFoundError, match="this server runs 'a-run'"):
        client.chat.completions.create(model="gpt-4", messages=HELLO)
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model="a-run", prompt="the " * 200)
    assert refused.value.code == "context_length_exceeded"


def test_a_long_conversation_is_cut_at_its_beginning_when_asked(server: Listener) -> None:
    long = [*HELLO, {"role": "assistant", "content": "x"}] * 30 + HELLO
    assert post(server, "/v1/chat/completions", messages=long)[0] == 400
    status, body = post(
        server, "/v1/chat/completions", messages=long, truncation="auto", max_tokens=20
    )
    assert status == 200 and body["usage"]["prompt_tokens"] <= 96 - 20


def test_content_in_parts_and_ignored_fields_are_taken(server: Listener) -> None:
    parts = [
        {
            "role": "user",
            "content": [{"type": "text", "text": "the "}, {"type": "text", "text": "fox"}],
        }
    ]
    status, body = post(
        server, "/v1/chat/completions", messages=parts, user="me", tools=[], presence_penalty=0
    )
    assert status == 200
    assert body["choices"][0]["message"]["content"] == expected()


def test_a_base_model_continues_text_and_says_that_it_knows_no_turns() -> None:
    with serving(Batcher(MODEL), TOKENIZER, chat=False) as listener:
        status, body = post(listener, "/v1/chat/completions", messages=HELLO)
        assert status == 400 and "/v1/completions" in body["error"]["message"]
        assert post(listener, "/v1/completions", prompt="the")[0] == 200
        assert json.loads(call(listener, "GET", "/v1/models")[2])["data"][0]["chat"] is False


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "rebound.example"},
        {"Host": "127.0.0.1:1"},
        {"Origin": "https://elsewhere.example"},
        {"Origin": "null"},
    ],
)
def test_another_sites_page_gets_nothing(server: Listener, headers: dict[str, str]) -> None:
    for method, path in (("GET", "/"), ("GET", "/v1/models"), ("POST", "/v1/completions")):
        assert call(server, method, path, b'{"prompt": "x"}', **headers)[0] == 403


def test_with_a_key_only_its_holder_is_answered() -> None:
    with serving(Batcher(MODEL), TOKENIZER, key="s3cret", everywhere=True) as listener:
        for headers in ({}, {"Authorization": "Bearer no"}, {"Authorization": "Bearer é"}):
            assert call(listener, "GET", "/v1/models", **headers)[0] == 401
        right = {"Authorization": "Bearer s3cret", "Host": "my-machine:1234"}
        assert call(listener, "GET", "/v1/models", **right)[0] == 200
        crossed = {**right, "Origin": "https://elsewhere.example"}
        assert call(listener, "GET", "/v1/models", **crossed)[0] == 403
        assert b"s3cret" not in call(listener, "GET", "/")[2]


def test_other_machines_never_reach_a_server_without_a_key() -> None:
    from reference.chat.protocol import Limits
    from reference.chat.server import make_app

    open_to_all = Listener("0.0.0.0")
    open_to_all.socket.close()
    assert open_to_all.key and open_to_all.hosts is None and open_to_all.key in open_to_all.page_url
    given = Listener("0.0.0.0", key="mine")
    given.socket.close()
    assert given.key == "mine"
    limits = Limits("m", True, 96, Sampling())
    with pytest.raises(ValueError, match="needs a key"):
        make_app(Script(TOKENIZER), TOKENIZER, limits, hosts=None, key=None)


def test_bad_requests_are_answered_and_do_no_harm(server: Listener) -> None:
    for body in (b"[]", b"{not json", b"", b"\xff", b"[" * 100_000):
        assert call(server, "POST", "/v1/completions", body)[0] == 400
    assert call(server, "GET", "/v1/../etc/passwd")[0] == 404
    assert call(server, "GET", "/v1/completions")[0] == 405
    assert call(server, "POST", "/v1/completions", b" " * (MAX_REQUEST_BYTES + 1))[0] == 413
    assert post(server, "/v1/completions", prompt="the")[0] == 200


def test_a_taken_port_is_one_message(server: Listener) -> None:
    with pytest.raises(TrainerError, match="cannot listen on"):
        Listener(port=server.socket.getsockname()[1])


def test_the_page_loads_nothing_from_elsewhere(server: Listener) -> None:
    _, headers, body = call(server, "GET", "/")
    policy, page = headers["content-security-policy"], body.decode()
    assert "default-src 'none'" in policy
    nonce = policy.split("'nonce-")[1].split("'")[0]
    assert page.count(f'nonce="{nonce}"') == 2
    assert "NONCE" not in page
    assert "http://" not in page and "https://" not in page and "innerHTML" not in page
