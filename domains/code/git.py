"""Reading a local git repository so that nothing but its commits decides what is read.

What is read goes into an append-only log under computed ids, so the same commit must give the same
bytes on every machine and at every time. A user's configuration, a repository's, attributes,
replaced and grafted commits, environment variables: each can change what git prints. So history
is read through a git directory of our own that has only the objects in common with the real one
(`history_of`). It also keeps a stranger's repository from having its configured commands run.
"""

import os
import shutil
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from tempfile import TemporaryDirectory, TemporaryFile

from .errors import GitFailed, GitMissing, NoCommits, NotARepository, PathMissing
from .names import name, readable, repository_of_remote

BLOCK_BYTES = 1 << 16
COMPLAINT_BYTES_MAX = 2000
# Git's hash of a tree without entries: attributes are read from there, that is, from nowhere.
EMPTY_TREE = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
# The modes of what git tracks and is no file: symbolic links and submodules.
NO_FILES = (b"120000", b"160000")

_ENVIRONMENT = {
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_TERMINAL_PROMPT": "0",
    "LC_ALL": "C",
}
_GLOBAL_CONFIG = "[safe]\n\tdirectory = *\n"
_HISTORY_CONFIG = f"""\
[core]
\tbare = true
\trepositoryFormatVersion = 1
\tcommitGraph = false
[attr]
\ttree = {EMPTY_TREE}
[extensions]
\tobjectFormat = """


@dataclass(frozen=True, slots=True)
class Git:
    """A way to run git: where it looks, and all that it knows of its surroundings."""

    directory: str
    environment: Mapping[str, str]

    def records(self, *arguments: str) -> Generator[bytes, None, None]:
        """Run a command and yield what it prints between NULs, as it prints it."""
        with _output(self, arguments) as blocks:
            rest = b""
            for block in blocks:
                *whole, rest = (rest + block).split(b"\0")
                yield from whole
            if rest:
                yield rest

    def line(self, *arguments: str) -> str:
        """Run a command and return the one line it prints; a name keeps its odd bytes."""
        with _output(self, arguments) as blocks:
            return os.fsdecode(b"".join(blocks).removesuffix(b"\n"))


@contextmanager
def _output(git: Git, arguments: tuple[str, ...]) -> Iterator[Iterator[bytes]]:
    """Open what a command prints; raise `GitFailed` with its complaint if it fails."""
    program = shutil.which("git")
    if program is None:
        raise GitMissing
    with (
        TemporaryFile() as complaint,
        Popen(  # noqa: S603 - no shell; the arguments are ours, and names of git's own
            [program, "-c", "core.fsmonitor=false", *arguments],
            cwd=git.directory,
            env=dict(git.environment),
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=complaint,
        ) as process,
    ):
        try:
            yield _blocks(process)
        except BaseException:
            process.kill()
            raise
        if process.wait():
            complaint.seek(0)
            raise GitFailed(_complaint(arguments[0], complaint.read(COMPLAINT_BYTES_MAX)))


def _blocks(process: Popen[bytes]) -> Iterator[bytes]:
    while process.stdout and (block := process.stdout.read(BLOCK_BYTES)):
        yield block


def _complaint(command: str, printed: bytes) -> str:
    said = " ".join(readable(line).strip() for line in printed.splitlines())
    return f"git {command} failed: {said or 'it did not say why'}. Run `git fsck` there"


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository on this machine, its folders as Python names them, on the commit `head`."""

    top: str
    directory: str
    common: str
    is_bare: bool
    branch: str
    head: str
    entity: str

    @property
    def path(self) -> str:
        """Where it is, in text that can be attested."""
        return readable(os.fsencode(self.top))


def find_repository(path: str | os.PathLike[str]) -> Repository:
    """Find the repository a folder belongs to, or say which of the usual things is wrong."""
    folder = os.path.abspath(path)  # noqa: PTH100 - a name with odd bytes stays as it is
    if not os.path.isdir(folder):  # noqa: PTH112 - as above
        raise PathMissing(f"there is no folder {_shown(folder)}. Give a local git repository")
    with _bystander(folder) as git:
        is_bare = _ask_whether(git)
        directory = _absolute(folder, git.line("rev-parse", "--git-dir"))
        common = _absolute(folder, git.line("rev-parse", "--git-common-dir"))
        top = directory if is_bare else _top_level(git)
        return Repository(
            top=top,
            directory=directory,
            common=common,
            is_bare=is_bare,
            branch=_branch(git),
            head=_head(git, top),
            entity=_entity(git, top if directory == common else common),
        )


def tracked_files(repository: Repository) -> list[tuple[bytes, bytes]]:
    """Return the mode and path of each file in the working tree that git tracks."""
    with _bystander(repository.top) as git:
        found = {}
        for record in git.records("ls-files", "-z", "--stage", "--full-name"):
            facts, _, path = record.partition(b"\t")
            found[path] = facts.partition(b" ")[0]
        return [(found[path], path) for path in sorted(found)]


@contextmanager
def history_of(repository: Repository) -> Iterator[tuple[Git, frozenset[str]]]:
    """Open the objects of a repository and nothing else of it.

    With them come the commits at which a shallow clone ends: their parents, and so their changes,
    are unknown.
    """
    with TemporaryDirectory(prefix="qntx-history-") as home:
        with _bystander(repository.top) as git:
            objects = _absolute(git.directory, git.line("rev-parse", "--git-path", "objects"))
            object_format = git.line("rev-parse", "--show-object-format")
        directory = Path(home, "git")
        for folder in ("objects", "refs"):
            Path(directory, folder).mkdir(parents=True)
        Path(directory, "HEAD").write_text(f"{repository.head}\n")
        Path(directory, "config").write_text(f"{_HISTORY_CONFIG}{object_format}\n")
        boundary = _shallow_boundary(repository.common)
        if boundary:
            Path(directory, "shallow").write_text("".join(f"{sha}\n" for sha in sorted(boundary)))
        environment = _environment(home)
        environment["GIT_DIR"] = str(directory)
        environment["GIT_OBJECT_DIRECTORY"] = objects
        yield Git(home, environment), boundary


@contextmanager
def _bystander(folder: str) -> Iterator[Git]:
    """Open git in a folder, with nothing of the user's, and trusting whoever owns the folder."""
    with TemporaryDirectory(prefix="qntx-git-") as home:
        Path(home, ".gitconfig").write_text(_GLOBAL_CONFIG)
        yield Git(folder, _environment(home))


def _environment(home: str) -> dict[str, str]:
    """Return the surroundings of a command: the caller's, without what speaks to git."""
    kept = {
        variable: value
        for variable, value in os.environ.items()
        if not variable.startswith(("GIT_", "XDG_"))
    }
    return kept | _ENVIRONMENT | {"HOME": home}


def _ask_whether(git: Git) -> bool:
    try:
        return git.line("rev-parse", "--is-bare-repository") == "true"
    except GitFailed as error:
        if "not a git repository" in str(error):
            message = (
                f"{_shown(git.directory)} belongs to no git repository. "
                "Give a folder in one, or clone one first"
            )
            raise NotARepository(message) from None
        raise


def _top_level(git: Git) -> str:
    if git.line("rev-parse", "--is-inside-work-tree") == "true":
        return git.line("rev-parse", "--show-toplevel")
    message = f"{_shown(git.directory)} is inside a git directory. Give the folder of its files"
    raise NotARepository(message)


def _branch(git: Git) -> str:
    """Return the branch that is checked out; git's own word for none is HEAD."""
    try:
        return readable(os.fsencode(git.line("symbolic-ref", "--quiet", "--short", "HEAD")))
    except GitFailed:
        return "HEAD"


def _head(git: Git, top: str) -> str:
    try:
        return git.line("rev-parse", "--verify", "--quiet", "HEAD^{commit}")
    except GitFailed:
        message = f"{_shown(top)} has no commits on the branch it is on. Commit something first"
        raise NoCommits(message) from None


def _entity(git: Git, folder: str) -> str:
    """Name a repository by where it was cloned from, or else by its folder."""
    try:
        urls = git.line("config", "--get-all", "-z", "remote.origin.url").split("\0")
    except GitFailed:
        urls = [""]
    remote = repository_of_remote(readable(os.fsencode(urls[0])))
    return remote or name(f"local/{_folder_name(folder)}".encode("utf-8", "surrogateescape"))


def _folder_name(folder: str) -> str:
    """Return the name of the folder that a repository's files, or its git directory, are in."""
    path = Path(folder)
    if path.name == ".git":
        path = path.parent
    return path.name.removesuffix(".git") or "repository"


def _shallow_boundary(common: str) -> frozenset[str]:
    try:
        return frozenset(Path(common, "shallow").read_text().split())
    except FileNotFoundError:
        return frozenset()


def _absolute(folder: str, path: str) -> str:
    return os.path.realpath(os.path.join(folder, path))  # noqa: PTH118 - odd bytes stay


def _shown(folder: str) -> str:
    return readable(os.fsencode(folder))
