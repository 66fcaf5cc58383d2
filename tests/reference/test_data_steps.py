"""The parts of corpus building, each against a plain statement of what it should do."""

import http.server
import json
import os
import signal
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("duckdb")
pytest.importorskip("datatrove")

from benchmarks.data_study import STUDENT, comparisons, interval, markdown
from reference.data import build as build_module
from reference.data import linear, minhash
from reference.data.bench import (
    made_texts,
    packing,
    planted_duplicates,
    whole_document_crop_rate,
)
from reference.data.build import Options, build_corpus
from reference.data.filters import rules
from reference.data.index import sampling_rates
from reference.data.overlap import OverlapIndex, build_index
from reference.data.spec import Decontaminate, Filters, Mix, ShardRules, Source, Spec
from reference.data.words import ngram_hashes, normalise, shingles, word_hashes
from reference.data.workers import Processes
from reference.errors import TrainerError

RULES_OFF = Filters(gopher_quality=False, gopher_repetition=False, fineweb=False)


def test_normalise_keeps_text_and_tidies_the_rest():
    assert normalise("a  b \t\r\nc\u2028d\x00\ufeff\n\n\n\n  e\u0301\n") == "a  b\nc\nd\n\n  \u00e9"
    for text in made_texts(5):
        assert normalise(normalise(text)) == normalise(text)


def test_words_are_hashed_alike_wherever_they_stand():
    plain, accented = word_hashes("The cat, the CAT!"), word_hashes("caf\u00e9 the cat")
    assert plain[0] == plain[2] == accented[1]
    assert plain[1] == plain[3] == accented[2]
    assert len(set(plain.tolist())) == 2
    assert not len(word_hashes("... \n\t")) and not len(word_hashes(""))
    words = word_hashes("a b c d a b c")
    grams = ngram_hashes(words, 3)
    assert len(grams) == 5 and grams[0] == grams[4] and len(shingles(words, 3)) == 4
    assert len(shingles(words[:2], 5)) == 1


def test_ngram_hashes_are_the_polynomial_they_are_said_to_be():
    from reference.data.words import _WORD, mix

    for count in (5, 5000):
        words = np.random.default_rng(2).integers(0, 2**64, count, dtype=np.uint64)
        for n in (1, 3, 5):
            plain = [
                sum(int(words[i + k]) * int(_WORD) ** k for k in range(n)) % 2**64
                for i in range(0, count - n + 1, 97)
            ]
            assert (ngram_hashes(words, n)[::97] == mix(np.array(plain, dtype=np.uint64))).all()


def test_bands_agree_as_often_as_their_formula_says():
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(60):
        shared = rng.integers(0, 2**63, 320, dtype=np.uint64)
        own = rng.integers(0, 2**63, (2, 40), dtype=np.uint64)  # Jaccard 320 / 400
        sets = [np.unique(np.concatenate([shared, part])) for part in own]
        assert minhash.jaccard(*sets) == pytest.approx(0.8)
        found += bool(np.intersect1d(*map(minhash.band_keys, sets)).size)
    assert found >= 58


def test_planted_near_duplicates_are_found_and_nothing_else():
    found = planted_duplicates(made_texts(120), pairs=120)
    assert 30 < found["similar"] < 100
    assert found["recall"] >= 0.95
    assert found["precision"] >= 0.95


def test_screened_repetition_rule_answers_as_datatroves_own():
    from datatrove.data import Document
    from datatrove.pipeline.filters import GopherRepetitionFilter

    from reference.data.filters import _words_class

    rng = np.random.default_rng(3)
    words = [f"w{index}" for index in range(300)]
    texts = made_texts(4)
    for repeat in range(30):
        base = [words[i] for i in rng.integers(0, 300, 120)]
        run = base[: int(rng.integers(2, 14))]
        for place in rng.integers(0, 100, int(rng.integers(0, 6))):
            base[place:place] = run
        texts.append(" ".join(base) + ("\nsame line" * (repeat % 7)))
    ours = dict(rules(Filters()))["gopher_repetition"]
    theirs = GopherRepetitionFilter(language=_words_class()()).filter
    answers = [theirs(Document(text=text, id="")) for text in texts]
    assert [ours(Document(text=text, id="")) for text in texts] == answers
    assert 5 < sum(answer is True for answer in answers) < len(texts) - 5


def test_an_unknown_option_of_a_rule_is_named():
    with pytest.raises(TrainerError, match=r"filters\.c4_options.*no_such"):
        list(rules(Filters(c4=True, c4_options={"no_such": 1})))


def test_the_linear_model_learns_and_repeats():
    texts = [f"{'menu login' if i % 2 else 'river stone'} {i} the of" for i in range(60)]
    classes = [i % 2 for i in range(60)]
    one, two = (linear.LinearModel.train(texts, classes, ["a", "b"]) for _ in range(2))
    assert one.digest == two.digest
    assert one.probabilities(word_hashes("login here"))[1] > 0.7
    assert one.probabilities(word_hashes("a stone"))[1] < 0.3
    assert one.probabilities(word_hashes("")).sum() == pytest.approx(1)


def test_auc_is_the_share_of_ordered_pairs():
    rng = np.random.default_rng(1)
    high, low = rng.integers(3, 9, 40) / 10, rng.integers(0, 7, 30) / 10
    pairs = [(a > b) + 0.5 * (a == b) for a in high for b in low]
    assert linear.auc(high, low) == pytest.approx(np.mean(pairs))


def test_shared_passages_count_and_task_wording_does_not(tmp_path: Path):
    wording = " ".join(f"rule{i}" for i in range(20))
    passage = " ".join(f"fact{i}" for i in range(90))
    rows = [{"query": f"{wording} case{i} thing{i} end{i}"} for i in range(30)]
    rows += [{"context": f"{passage} question{i}"} for i in range(30)]
    path = tmp_path / "exam.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    build_index(Decontaminate(extra=(str(path),)), tmp_path / "index")
    index = OverlapIndex(tmp_path / "index")
    assert index.find(word_hashes(wording)) is None
    found = index.find(word_hashes(f"before {' '.join(passage.split()[5:25])} after"))
    assert found is not None and (found.matches, found.task) == (8, "exam")
    own = index.find(word_hashes(rows[7]["query"].replace("end7", "else")))
    assert own is not None and own.item == 7


def test_rates_give_the_wanted_shares_within_the_allowed_repeats():
    spec = Spec(source=(), mix=Mix(shares={"a": 3, "b": 1}, max_epochs=2))
    rates = sampling_rates({"a": 600, "b": 1000, "c": 50}, spec)
    assert set(rates) == {"a", "b"}
    assert rates["a"] * 600 == pytest.approx(3 * rates["b"] * 1000)
    assert max(rates.values()) == pytest.approx(2)
    with pytest.raises(TrainerError, match=r"mix\.shares names 'x'"):
        sampling_rates({"a": 1}, Spec(source=(), mix=Mix(shares={"x": 1})))


def test_packing_drops_less_than_nanochats_rule():
    assert whole_document_crop_rate(np.array([4, 4]), seq_len=7) == 0
    assert whole_document_crop_rate(np.array([12]), seq_len=7) == pytest.approx(4 / 12)
    found = packing(made_texts(40), seq_len=128)
    assert found["crop_rate"] < found["whole_documents_crop_rate"]


def test_intervals_are_students():
    mean, half = interval([0.1, 0.2, 0.3])
    assert mean == pytest.approx(0.2)
    assert half == pytest.approx(STUDENT[2] * 0.1 / 3**0.5)


def test_the_plan_shows_the_committed_study():
    root = Path(build_module.__file__).parents[1]
    study = json.loads((root / "studies" / "data-steps-cpu.json").read_text())
    assert study["comparisons"] == comparisons(study["runs"])
    text = (root / "plans" / "02-data-strategy-for-low-compute.md").read_text()
    rows = [line for line in markdown(study).splitlines() if line.startswith("|")]
    assert len(rows) == len(study["runs"]) + len(study["comparisons"]) + 4
    assert all(row in text for row in rows)


def die_once(marker: Path, number: int) -> int:
    if number == 1 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def always_die(number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_a_killed_worker_costs_only_what_it_had_in_hand(tmp_path: Path):
    workers = Processes(2)
    jobs = [(tmp_path / "died", number) for number in range(4)]
    assert sorted(workers.run(die_once, jobs)) == [(n, n) for n in range(4)]
    with pytest.raises(TrainerError, match="a worker was killed 3 times") as caught:
        list(workers.run(always_die, [(1,), (2,)]))
    workers.close()
    assert "resumes after the last finished part" in caught.value.hint


def test_a_streamed_remote_file_is_read_and_its_change_noticed(tmp_path: Path, monkeypatch):
    pytest.importorskip("datasets")
    pytest.importorskip("aiohttp")
    for name in ("HF_HOME", "HF_DATASETS_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / "cache"))
    served = tmp_path / "web"
    served.mkdir()
    lines = [json.dumps({"text": f"Text {i} from far away."}) for i in range(20)]
    (served / "x.jsonl").write_text("\n".join(lines))

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, directory=str(served), **kwargs)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/x.jsonl"
        source = Source(name="far", dataset="json", data_files=(url,))
        spec = Spec(source=(source,), filters=RULES_OFF, shards=ShardRules(validation=0.1))
        manifest = build_corpus(spec, tmp_path / "out", Options(workers=1))
        assert manifest["sources"]["far"]["documents"] == 20
        from reference.data.sources import find_parts, read_part

        (part,) = find_parts(source, 0, 1, lambda error: None)
        (served / "x.jsonl").write_text("\n".join(lines[:3]))
        with pytest.raises(TrainerError, match=r"x\.jsonl has changed since the build began"):
            list(read_part(source, part))
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.slow
def test_a_ray_cluster_builds_the_same_bytes_and_outlives_a_killed_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "300")  # a busy machine is slow to start it
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    pytest.importorskip("ray")
    (tmp_path / "in").mkdir()
    table = pa.table({"text": made_texts(60)})
    pq.write_table(table, tmp_path / "in" / "a.parquet", row_group_size=20)
    source = Source(name="a", path=str(tmp_path / "in"))
    spec = Spec(source=(source,), filters=RULES_OFF, part_mb=0.02, shards=ShardRules(text_mb=0.05))
    here = build_corpus(spec, tmp_path / "here", Options(workers=1))
    process_part, died = build_module.process_part, tmp_path / "died"

    def dies_once(build: Path, number: int, digest: str) -> None:
        """Inside the test, so that it travels to the workers by value."""
        if number == 1 and not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        process_part(build, number, digest)

    monkeypatch.setattr(build_module, "process_part", dies_once)
    there = build_corpus(spec, tmp_path / "there", Options(workers=2, ray="local"))
    assert died.exists()
    assert there["digest"] == here["digest"]
    assert len(there["inputs"]) > 1
