"""The site's pages: what they say, what they never do with a stranger's words, what they weigh."""

from __future__ import annotations

import gzip
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import boards
import pytest
import tamper
from click.testing import CliRunner

from kit.board.load import load_board
from kit.board.site.build import build_site, write_index
from kit.board.site.recipes import compare
from kit.board.site.series import curves, thin
from kit.board.site.text import clean, compact, hours
from kit.board.site.view import groups, index_row
from kit.cli.main import cli
from kit.errors import PrerequisiteError
from kit.recipe import load_recipe
from kit.timing import duration

VOID = {"meta", "link", "input", "br", "img", "rect", "line", "circle", "path"}


class Reader(HTMLParser):
    """Elements, attributes and text of a page; knows whether tags close as they open."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        assert self.open == [], self.open[-3:]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def gpu_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpu") / "run"
    tamper.gpu_run().write(folder)
    return folder


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, gpu_run: Path) -> Path:
    """A board with every state, a hostile row and one real run behind a row, as a site."""
    root = tmp_path_factory.mktemp("site")
    rows = [boards.row(number) for number in range(6)]
    rows[1] |= {"state": "disputed", "rank": None, "why_not_ranked": ["disputed"]}
    rows[2] |= {"state": "withdrawn", "rank": None}
    rows[3] |= {"title": boards.HOSTILE, "submitter": "x" * 96, "cpu": boards.HOSTILE}
    rows[3]["gpu"] = {**rows[3]["gpu"], "name": boards.HOSTILE}
    rows[4] = boards.add_submission(root / "board", gpu_run, rows[4])
    rows = boards.with_ranks(rows)
    rows += [boards.unranked(50, "open"), boards.reference("GPT-2 1.5B", 0.256525, None)]
    hostile = boards.reference("evil", 0.2, 1.0, title=boards.HOSTILE)
    rows.append(hostile)
    event = {
        "at": "2026-11-22T13:00:00Z",
        "ev": "state",
        "id": rows[0]["id"],
        "reason": boards.HOSTILE,
        "data": {},
    }
    boards.write_board(root / "board", rows, [event])
    build_site(load_board(root / "board"), root / "out")
    return root / "out"


def pages(site: Path) -> list[Path]:
    return [*site.glob("*.html"), *site.glob("row/*.html")]


def test_every_page_is_whole_and_loads_nothing_from_elsewhere(site: Path) -> None:
    assert len(pages(site)) == 3 + 7
    for path in pages(site):
        page = Reader(path.read_text())
        policy = next(a for t, a in page.elements if a.get("http-equiv"))
        assert policy["http-equiv"] == "Content-Security-Policy"
        assert (policy["content"] or "").startswith("default-src 'none'; script-src 'self'")
        for tag, attributes in page.elements:
            assert "style" not in attributes and not any(a.startswith("on") for a in attributes)
            address = attributes.get("src") or attributes.get("href") or ""
            if tag in ("script", "link", "img") and address:
                assert address.startswith(("assets/", "../assets/", "data:image/")), address
            if tag == "script" and not address:
                assert attributes["type"] == "application/json"
            if tag == "a" and "//" in address:
                assert address.startswith("https://")
                assert "noopener" in (attributes["rel"] or "")


def test_hostile_words_stay_words(site: Path) -> None:
    for path in pages(site):
        raw = path.read_text()
        assert "<img" not in raw and "\u202e" not in raw and "\u0007" not in raw
        for text in Reader(raw).text:
            assert not re.search("(?:Z\u0335{3})|(?:\u0335{3})", text)
    index = Reader((site / "index.html").read_text())
    assert any("<img src=x onerror=alert(1)>" in text for text in index.text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("=1+1", "'=1+1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("-2", "'-2"),
        ("plain", "plain"),
        ("a\nb\tc", "a b c"),
        ("x" * 400, "x" * 299 + "…"),
        ("\u202eabc", "abc"),
    ],
)
def test_text_is_cleaned(text: str, shown: str) -> None:
    assert clean(text) == shown


def test_figures_read_well() -> None:
    assert [hours(3600 * h) for h in (23.456, 0.05)] == ["23.46", "0.050"]
    assert [duration(s) for s in (38.14, 921.2, 83_500)] == ["38.1 s", "15 min 21 s", "23 h 12 min"]
    assert [compact(n) for n in (560_988_160, 8.8e9, 3.1e19)] == ["561 M", "8.8 B", "31 E"]


def test_rows_are_grouped_by_what_is_compared(site: Path) -> None:
    rows = [index_row(row) for row in load_board(site.parent / "board").rows]
    found = {group.title: len(group.rows) for group in groups(rows)}
    assert found == {
        "Ranked": 4,
        "RTX 4090, 24 hours, not ranked": 1,
        "Open track": 1,
        "Published references": 2,
        "Withdrawn": 1,
    }
    ranked = groups(rows)[0].rows
    assert [row.rank for row in ranked] == sorted(row.rank or 0 for row in ranked)
    assert all(row.interval and row.spread == "±0.0102" for row in ranked)


def test_a_rows_page_shows_checks_curves_tasks_machine_and_recipe(site: Path) -> None:
    [path] = [p for p in site.glob("row/*.html") if 'id="series"' in p.read_text()]
    raw = path.read_text()
    text = " ".join(Reader(raw).text)
    for words in ("V04 Log", "events in one chain", "Edited, dropped", "gpt2-xl", "hellaswag"):
        assert words in raw, words
    for words in ("Class, by measurement", "BF16 matmul", "fields differ", "n4090-kit verify"):
        assert words in text, words
    assert f"n4090-kit reproduce {path.stem}" in text
    specs = json.loads(re.findall(r'id="series">(.*?)</script>', raw, re.S)[0])
    found = {spec["id"] for spec in specs}
    assert {"chart-loss", "chart-bpb", "chart-speed", "chart-power", "chart-heat"} <= found
    assert all(f'id="{name}"' in raw for name in found)
    assert (site / "data" / f"{path.stem}.report.json").is_file()


def test_what_was_not_recorded_is_said(tmp_path: Path) -> None:
    nano = Path(__file__).parents[2] / "submissions/2026/example/9ffdb8e5b168ed02"
    row = boards.unranked(9, "open", submitter="example", gpu=None, kwh=None)
    row = boards.add_submission(tmp_path / "board", nano, row)
    boards.write_board(tmp_path / "board", [row])
    build_site(load_board(tmp_path / "board"), tmp_path / "out")
    page = (tmp_path / "out" / "row" / f"{row['id']}.html").read_text()
    assert "GPU power: neither a GPU" in page and "could not be read" in page
    index = (tmp_path / "out" / "index.html").read_text()
    assert "No ranked run yet" in index and "n4090-kit launch run --recipe reference" in index


def test_curves_are_thinned_but_keep_their_ends(gpu_run: Path, tmp_path: Path) -> None:
    points = [(float(i), float(i % 7)) for i in range(10_000)]
    short = thin(points)
    assert len(short) == 240 and (short[0], short[-1]) == (points[0], points[-1])
    row = boards.add_submission(tmp_path, gpu_run, boards.row(1))
    boards.write_board(tmp_path, [row])
    board = load_board(tmp_path)
    charts = {chart["id"]: chart for chart in curves(board.submission(row))}
    result = json.loads((gpu_run / "result.json").read_text())
    loss = charts["chart-loss"]["series"][0]["points"]
    assert loss[0][1] == pytest.approx(result["training"]["first_loss"], rel=1e-4)
    assert loss[-1][1] == pytest.approx(result["training"]["final_loss"], rel=1e-4)
    speed = charts["chart-speed"]["series"][0]["points"]
    assert speed[10][1] == pytest.approx(result["training"]["tokens_per_s"], rel=0.05)


def test_recipes_are_compared_field_by_field() -> None:
    text = load_recipe("reference").text
    assert compare(text).differences == []
    changed = re.sub(r"(?m)^n_layer = \d+", "n_layer = 4", text)
    [found] = compare(changed).differences
    assert (found.field, found.here) == ("model.n_layer", "4")
    assert compare("nonsense = [").reason


def test_the_same_board_gives_the_same_site_and_reports_are_kept(
    site: Path, tmp_path: Path
) -> None:
    board = load_board(site.parent / "board")
    build_site(board, tmp_path / "again")
    for path in pages(site):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(site)).read_bytes()


def test_a_thousand_rows_are_small_before_their_details(tmp_path: Path) -> None:
    rows = boards.with_ranks([boards.row(number) for number in range(1000)])
    boards.write_board(tmp_path / "board", rows)
    write_index(load_board(tmp_path / "board"), tmp_path / "out")
    first = [tmp_path / "out" / "index.html", *(tmp_path / "out" / "assets").iterdir()]
    weight = sum(len(gzip.compress(path.read_bytes(), 6)) for path in first)
    assert weight < 500_000, weight
    assert (tmp_path / "out" / "index.html").read_text().count("<tr data-id=") == 1000


def test_the_command_writes_a_site_and_spares_other_folders(site: Path, tmp_path: Path) -> None:
    board = site.parent / "board"
    done = CliRunner().invoke(
        cli, ["board", "site", "--board", str(board), "--out", str(tmp_path / "new")]
    )
    assert done.exit_code == 0, done.output
    assert (tmp_path / "new" / "index.html").is_file()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(PrerequisiteError, match="not empty"):
        build_site(load_board(board), tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letter.txt"]
