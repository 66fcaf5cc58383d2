"""Submitting to the Hub: weights to the submitter's model repository, text to the board as a pull
request pinned to that commit.

Done in an order that can be broken off anywhere and taken up again: repository, large files, one
commit, its check, tag, pull request. Each step looks first whether it is done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kit.board.card import eval_results
from kit.board.hub import Hub, same
from kit.board.layout import BOARD_FOLDER
from kit.board.package import Item, Package, document_items, tag_name
from kit.errors import KitError

Document = dict[str, object]
# Written anew by every version of the kit, so an earlier one's are as good.
_PAGES = ("README.md", "curves.svg", "hf/")
_SCORES = ".eval_results/core.yaml"


@dataclass(frozen=True)
class Submitted:
    """Where a submission is now."""

    model: str | None  # owner/name@commit
    pull_request: int | None
    url: str | None
    state: str  # "opened", "open already", "on the board already"


def title_of(package: Package) -> str:
    return f"Submit {package.id}"


def submit_to_hub(hub: Hub, board: str, package: Package) -> Submitted:
    """Publishes a package; the second time it finds everything done.

    Raises:
        KitError: What is in the way, with its remedy.
    """
    main = hub.head(board, "dataset")
    hub.settings(board, main)
    _refuse_taken(hub, board, package, main)
    revision = _publish_model(hub, package) if package.repository else None
    if revision:
        _publish_scores(hub, package, board, revision, main)
    items = [
        Item(f"{BOARD_FOLDER}/{item.path}", item.source)
        for item in package.board_items(package.repository, revision)
    ]
    model = f"{package.repository}@{revision}" if revision else None
    placed = hub.there(board, "dataset", [item.path for item in items], main)
    own = [item for item in items if f"/{package.path}/" in f"/{item.path}"]
    if all(item.path in placed for item in own):
        items = [item for item in items if item.path not in placed]
        if not items:
            return Submitted(model, None, None, "on the board already")
    return _open(hub, board, title_of(package), items, package.submitter, model)


def submit_documents(
    hub: Hub, board: str, documents: Sequence[Document], submitter: str
) -> Submitted:
    """Opens a pull request with signed documents: a reproduction, a dispute, a withdrawal."""
    main = hub.head(board, "dataset")
    hub.settings(board, main)
    items = [Item(f"{BOARD_FOLDER}/{item.path}", item.source) for item in document_items(documents)]
    placed = hub.there(board, "dataset", [item.path for item in items], main)
    missing = [item for item in items if item.path not in placed]
    if not missing:
        return Submitted(None, None, None, "on the board already")
    title = f"Add {missing[0].path.removeprefix(f'{BOARD_FOLDER}/')}"
    return _open(hub, board, title, missing, submitter, None)


def _open(
    hub: Hub, board: str, title: str, items: Sequence[Item], submitter: str, model: str | None
) -> Submitted:
    """The pull request of this title: the one that is open, or a new one."""

    def mine() -> Submitted | None:
        for one in hub.pull_requests(board, author=submitter):
            if one.title == title and one.author == submitter and one.status in ("open", "draft"):
                return Submitted(model, one.num, one.url, "open already")
        return None

    known = mine()
    if known is not None:
        assert known.pull_request is not None
        _complete(hub, board, known.pull_request, items)
        return known
    done = hub.commit(
        board,
        "dataset",
        items,
        title,
        description="Text only; opened by n4090-kit.",
        create_pr=True,
        found=mine,
    )
    if isinstance(done, Submitted):
        return done
    return Submitted(model, done.pr_num, done.pr_url, "opened")


def _complete(hub: Hub, board: str, number: int, items: Sequence[Item]) -> None:
    """Refuses to go on with a pull request that holds something else under our title."""
    there = hub.there(board, "dataset", [item.path for item in items], f"refs/pr/{number}")
    wrong = [item.path for item in items if item.path not in there]
    if wrong:
        raise KitError(
            f"pull request {number} of the same title lacks {wrong[0]}",
            hint="close it on the Hub, then submit again",
        )


def _refuse_taken(hub: Hub, board: str, package: Package, main: str) -> None:
    path = f"{BOARD_FOLDER}/{package.path}/result.json"
    there = hub.there(board, "dataset", [path], main).get(path)
    if there and not same(there, Item(path, package.run / "result.json")):
        raise KitError(f"`{package.path}` is taken by another result on this board")


def _publish_model(hub: Hub, package: Package) -> str:
    """The commit of the model repository that holds exactly the package's files."""
    repository = package.repository
    assert repository is not None
    if repository.split("/")[0] != package.submitter:
        raise KitError(
            f"`{repository}` is not in the account of {package.submitter}",
            hint="the row's weights have to lie in the submitter's own account",
        )
    hub.make_model_repository(repository)
    paths = [item.path for item in package.model]
    there = hub.there(repository, "model", paths, "main")
    own = there.get("result.json")
    if own and not same(own, Item("result.json", package.run / "result.json")):
        raise KitError(
            f"the name `{repository}` is taken by another result",
            hint="nothing is overwritten; choose another with --repo",
        )
    missing = [i for i in package.model if i.path not in there or not same(there[i.path], i)]
    others = [item.path for item in missing if item.path in there]
    strangers = [path for path in others if own is None or not path.startswith(_PAGES)]
    if strangers:
        raise KitError(
            f"`{repository}` holds another `{strangers[0]}` already",
            hint="nothing is overwritten; choose another with --repo",
        )
    missing = [item for item in missing if item.path not in others]
    if missing:
        hub.tell(f"sending {len(missing)} files to {repository}")
        hub.commit(repository, "model", missing, f"Result {package.id}")
    revision = _tagged(hub, package) or hub.head(repository, "model")
    there = hub.there(repository, "model", paths, revision)
    for item in package.model:
        info = there.get(item.path)
        if info is None or (not same(info, item) and item.path not in others):
            raise KitError(
                f"`{item.path}` arrived as something else",
                hint="run the command again: it uploads the file again",
                expected=item.digest,
                found=None if info is None else info.lfs and info.lfs.sha256,
            )
    hub.tag(repository, tag_name(package.id), revision)
    return revision


def _tagged(hub: Hub, package: Package) -> str | None:
    """The commit that an earlier submission of this result tagged, if there is one."""
    from kit.errors import PrerequisiteError

    assert package.repository is not None
    try:
        return hub.head(package.repository, "model", tag_name(package.id))
    except PrerequisiteError:
        return None


def _publish_scores(hub: Hub, package: Package, board: str, revision: str, main: str) -> None:
    """The Hub's own file of scores: a commit of its own, because it names the result's commit."""
    repository = package.repository
    assert repository is not None
    if hub.there(repository, "model", [_SCORES], "main"):
        return
    url = f"{hub.api.endpoint}/{repository}/blob/{revision}/result.json"
    text = eval_results(package.result, board, revision=main, source_url=url)
    if text is not None:
        item = Item(_SCORES, text.encode())
        hub.commit(
            repository,
            "model",
            [item],
            f"Scores of {package.id}",
            found=lambda: hub.there(repository, "model", [_SCORES], "main") or None,
        )
