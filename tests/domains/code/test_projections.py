"""What is stated is counted once, however often and in whatever parts it is stated."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

import pytest
from sqlalchemy import Table, select

from domains.code import (
    CommitRecorded,
    FileAnalyzed,
    RepositoryAnalyzed,
    RepositoryCloned,
    RepositoryIngested,
    code,
    ingest,
)
from domains.code.read_model import commits, files, repositories
from qntx_es import Attestation, Ax, Host, Payload

Git = Callable[..., str]
QNTX = "github.com/teranos/QNTX"
EARLY, LATE = datetime(2026, 1, 4, tzinfo=UTC), datetime(2026, 2, 4, tzinfo=UTC)
# The beginning of a real history: one commit a line, as `git log --numstat` tells it.
HISTORY = Path(__file__).with_name("qntx_commits.jsonl")


@pytest.fixture
def host(url: str) -> Iterator[Host]:
    """Open a host with the code domain on an empty database."""
    with closing(Host(url, domains=[code])) as opened:
        opened.upgrade()
        yield opened


def rows(host: Host, table: Table) -> list[dict[str, Any]]:
    """Return the rows of a table in the order of its key."""
    with host.database.read() as connection:
        found = connection.execute(select(table).order_by(*table.primary_key))
        return [dict(row) for row in found.mappings()]


def state(host: Host, *payloads: Payload, entity: str = QNTX) -> None:
    """State each of these about a repository, and have the domain read them."""
    host.append([code.attest(payload, entity=entity) for payload in payloads])
    host.catch_up()


def test_a_cloned_repository_has_a_row(host: Host) -> None:
    """What was cloned is known by where it is, and has no history yet."""
    state(host, RepositoryCloned(path="/tmp/qntx", branch="main"))  # noqa: S108 - never opened
    (row,) = rows(host, repositories)
    assert (row["entity"], row["path"], row["branch"]) == (QNTX, "/tmp/qntx", "main")  # noqa: S108
    assert (row["commits"], row["loc"], row["last_commit_at"]) == (0, None, None)


def test_commits_are_counted_by_repository_and_file(host: Host) -> None:
    """Each commit counts in its repository and in each file it changes, with its lines."""
    state(
        host,
        CommitRecorded(
            sha="b", committed_at=LATE, files=(("x", 1, 2), ("y", None, None)), added=1, deleted=2
        ),
        CommitRecorded(sha="a", committed_at=EARLY, files=(("x", 3, 0),), added=3),
        CommitRecorded(sha="c", files_omitted=7),
    )
    (repository,) = rows(host, repositories)
    counted = {name: repository[name] for name in ("commits", "added", "deleted")}
    assert counted == {"commits": 3, "added": 4, "deleted": 2}
    assert (repository["first_commit_at"], repository["last_commit_at"]) == (EARLY, LATE)
    assert [
        (row["path"], row["commits"], row["added"], row["deleted"], row["last_commit_at"])
        for row in rows(host, files)
    ] == [("x", 2, 4, 2, LATE), ("y", 1, 0, 0, LATE)]
    assert [(row["sha"], row["files"]) for row in rows(host, commits)] == [
        ("a", 1),
        ("b", 2),
        ("c", 7),
    ]


FULL = CommitRecorded(sha="a", committed_at=EARLY, files=(("x", 3, 1),), added=3, deleted=1)
BOUNDARY = CommitRecorded(sha="a", committed_at=EARLY, boundary=True)


@pytest.mark.parametrize(
    "stated", [(BOUNDARY, FULL), (FULL, BOUNDARY), (BOUNDARY, BOUNDARY, FULL, FULL, BOUNDARY)]
)
def test_a_commit_counts_once_however_much_was_known_of_it(
    host: Host, stated: tuple[CommitRecorded, ...]
) -> None:
    """The end of a shallow clone and the same commit in full are one commit, with its changes."""
    state(host, *stated)
    (repository,) = rows(host, repositories)
    assert (repository["commits"], repository["added"], repository["deleted"]) == (1, 3, 1)
    assert [(row["commits"], row["added"]) for row in rows(host, files)] == [(1, 3)]
    assert [row["boundary"] for row in rows(host, commits)] == [False]


def test_the_same_commit_of_two_repositories_counts_in_both(host: Host) -> None:
    """A commit belongs to each repository whose history holds it."""
    state(host, FULL, entity="one")
    state(host, FULL, entity="two")
    assert [row["commits"] for row in rows(host, repositories)] == [1, 1]


def test_measures_are_the_latest(host: Host) -> None:
    """A repository and a file show what their last analysis found, beside their history."""
    state(
        host,
        FULL,
        RepositoryIngested(commit_count=1, language="Go", head="a"),
        RepositoryAnalyzed(files=1, loc=10, complexity=1.5),
        RepositoryAnalyzed(files=2, loc=20, complexity=2.25),
    )
    state(host, FileAnalyzed(repository=QNTX, loc=7, complexity=3, coverage=85.3), entity="x")
    (repository,) = rows(host, repositories)
    shown = ("commits", "language", "head", "files", "loc", "complexity")
    assert [repository[name] for name in shown] == [1, "Go", "a", 2, 20, 2.25]
    (file,) = rows(host, files)
    assert [file[name] for name in ("commits", "loc", "complexity", "coverage")] == [1, 7, 3, 85.3]


def test_a_file_that_is_gone_has_no_measures_any_more(
    host: Host, project: Path, commit: Git
) -> None:
    """What a new analysis does not find keeps its history and loses its measures."""
    commit(project, {"gone.go": "package main\n"})
    ingest(project, host.append)
    host.catch_up(jobs=True)
    commit(project, {"gone.go": None})
    ingest(project, host.append)
    host.catch_up(jobs=True)
    measured = {row["path"]: (row["commits"], row["loc"]) for row in rows(host, files)}
    assert measured == {"README.md": (1, None), "gone.go": (2, None), "main.go": (2, 2)}


def requests(host: Host) -> list[Any]:
    """Return the requests for an analysis that were made."""
    found = host.ax(Ax(contexts=("pulse.job_requested",)))
    return [(one.entity, one.payload["handler"], one.payload["payload"]) for one in found]


def test_an_analysis_is_asked_for_once_a_clone_is_there(host: Host) -> None:
    """A cloned repository is analysed, by a job that knows where it is."""
    state(host, RepositoryCloned(path="/nowhere"))
    assert requests(host) == [(QNTX, "code.analyze_repository", {"path": "/nowhere"})]


def test_new_history_has_an_analysed_repository_analysed_again(host: Host) -> None:
    """History that comes after an analysis asks for another; before, the first one is enough."""
    cloned = RepositoryCloned(path="/nowhere")
    state(host, cloned, RepositoryIngested(commit_count=1, head="a"))
    assert len(requests(host)) == 1
    analyzed = RepositoryAnalyzed(files=1, loc=1, complexity=1)
    state(host, analyzed, RepositoryIngested(commit_count=2, head="b"))
    assert len(requests(host)) == 2


def test_history_without_a_clone_asks_for_nothing(host: Host) -> None:
    """Where nobody said where a repository is, nothing can be analysed."""
    analyzed = RepositoryAnalyzed(files=1, loc=1, complexity=1)
    state(host, analyzed, RepositoryIngested(commit_count=2, head="b"))
    assert requests(host) == []


def recorded(line: str) -> Attestation:
    """Read one commit of the real history."""
    told = json.loads(line)
    changes = [(path, added, deleted) for path, added, deleted in told["files"]]
    return code.attest(
        CommitRecorded(
            sha=told["commit"],
            author=told["author"],
            committed_at=datetime.fromisoformat(told["date"]),
            parents=told["parents"],
            files=tuple(changes),
            added=sum(added or 0 for _, added, _ in changes),
            deleted=sum(deleted or 0 for _, _, deleted in changes),
        ),
        entity=told["repository"],
        actor="ixgest-git@user",
    )


def test_a_real_history_adds_up(host: Host) -> None:
    """The read model of a real history has the sums that counting it by hand gives."""
    told = [json.loads(line) for line in HISTORY.read_text().splitlines()]
    host.append([recorded(line) for line in HISTORY.read_text().splitlines()])
    host.catch_up()

    churn: Counter[str] = Counter()
    for path, added, deleted in (change for one in told for change in one["files"]):
        churn[path] += (added or 0) + (deleted or 0)
    (repository,) = rows(host, repositories)
    dates = [datetime.fromisoformat(one["date"]) for one in told]
    assert repository["commits"] == len(told)
    assert repository["added"] + repository["deleted"] == churn.total()
    assert (repository["first_commit_at"], repository["last_commit_at"]) == (
        min(dates),
        max(dates),
    )
    assert {row["path"]: row["added"] + row["deleted"] for row in rows(host, files)} == churn


def test_an_ingested_repository_is_projected_and_analysed(host: Host, project: Path) -> None:
    """From a folder on this machine to its measures, by attestations and one job."""
    ingest(project, host.append)
    host.catch_up(jobs=True)
    (repository,) = rows(host, repositories)
    shown = ("entity", "path", "commits", "language", "files", "loc", "complexity")
    assert [repository[name] for name in shown] == [
        "local/project",
        str(project),
        2,
        "Go",
        1,
        2,
        1.0,
    ]
    main, readme = sorted(rows(host, files), key=lambda row: row["path"], reverse=True)
    assert (main["path"], main["commits"], main["loc"], main["complexity"]) == ("main.go", 2, 2, 1)
    assert main["last_modified"].isoformat() == "2026-01-04"
    assert (readme["path"], readme["loc"]) == ("README.md", None)


def test_ingesting_again_appends_only_what_is_new(host: Host, project: Path, commit: Git) -> None:
    """A repeated ingestion adds nothing; after a commit it adds that, and a new analysis."""
    ingest(project, host.append)
    host.catch_up(jobs=True)
    before = len(host.ax(Ax()))
    ingest(project, host.append)
    host.catch_up(jobs=True)
    assert len(host.ax(Ax())) == before
    commit(project, {"more.go": "package main\n"})
    ingest(project, host.append)
    host.catch_up(jobs=True)
    (repository,) = rows(host, repositories)
    assert (repository["commits"], repository["files"]) == (3, 2)


def test_a_shallow_clone_and_then_the_whole_give_the_whole(
    host: Host, project: Path, tmp_path: Path, git: Git
) -> None:
    """What was ingested shallow first ends in the rows that a full ingestion alone gives."""
    git(tmp_path, "clone", "--quiet", "--depth=1", f"file://{project}", "shallow")
    ingest(tmp_path / "shallow", host.append, repository="one")
    git(tmp_path / "shallow", "fetch", "--quiet", "--unshallow")
    ingest(tmp_path / "shallow", host.append, repository="one")
    ingest(project, host.append, repository="two")
    host.catch_up()

    def without(name: str, table: Table) -> list[dict[str, Any]]:
        own = [
            row for row in rows(host, table) if name in (row.get("entity"), row.get("repository"))
        ]
        return [
            {key: row[key] for key in row if key not in ("entity", "repository", "path", "branch")}
            for row in own
        ]

    for table in (repositories, commits, files):
        assert without("one", table) == without("two", table)


def test_a_rebuild_gives_the_same_rows(host: Host, project: Path) -> None:
    """The tables built anew from the log hold what the live ones held."""
    ingest(project, host.append)
    host.catch_up(jobs=True)
    before = {table.name: rows(host, table) for table in (repositories, commits, files)}
    host.rebuild("code")
    assert {table.name: rows(host, table) for table in (repositories, commits, files)} == before


def test_a_repository_that_is_gone_fails_its_analysis_for_good(host: Host) -> None:
    """The job of a path that leads nowhere is given up, with the reason, and tried no more."""
    state(host, RepositoryCloned(path="/nowhere"))
    host.catch_up(jobs=True)
    (failed,) = host.ax(Ax(contexts=("pulse.job_failed",)))
    assert "there is no folder /nowhere" in json.dumps(failed.payload)
    assert failed.payload["retry_at"] is None


def test_a_bare_repository_has_a_history_and_no_analysis(
    host: Host, project: Path, tmp_path: Path, git: Git
) -> None:
    """The job of a repository without a working tree is given up, with the remedy."""
    git(tmp_path, "clone", "--quiet", "--bare", str(project), "bare.git")
    ingest(tmp_path / "bare.git", host.append)
    host.catch_up(jobs=True)
    (failed,) = host.ax(Ax(contexts=("pulse.job_failed",)))
    assert "is bare: it has no files to analyse" in json.dumps(failed.payload)
    assert [row["commits"] for row in rows(host, repositories)] == [2]


def test_the_longest_names_are_keys(host: Host) -> None:
    """A repository and a path of as many bytes as the log takes have their rows."""
    random = Random(1)  # noqa: S311 - no secret: only what no database can compress
    long = "".join(chr(random.randrange(0x10000, 0x20000)) for _ in range(256))
    state(host, CommitRecorded(sha="a", files=((long, 1, 0),)), entity=long)
    assert [(row["repository"], row["path"]) for row in rows(host, files)] == [(long, long)]


def test_two_analyses_of_one_tree_say_the_same(host: Host, project: Path, commit: Git) -> None:
    """An analysis is a function of the tree: repeated, it states the same of the same files."""
    commit(project, {"b.py": "def f():\n    pass\n", "a.py": "x = 1\n", b"\xe9.py": ""})
    ingest(project, host.append, repository="one")
    ingest(project, host.append, repository="two")
    host.catch_up(jobs=True)
    stated: dict[str, list[Any]] = {"one": [], "two": []}
    for one in host.ax(Ax(contexts=("file_analyzed",))):
        payload = dict(one.payload)
        stated[payload.pop("repository")].append((one.entity, payload))
    assert stated["one"] == stated["two"]
    assert [entity for entity, _ in stated["one"]] == ["a.py", "b.py", "main.go", r"\xe9.py"]
