"""What can be wrong with a local git repository, each with its remedy."""

from qntx_es import QntxError


class GitMissing(QntxError):
    """There is no git on PATH. Install it: https://git-scm.com/downloads."""


class PathMissing(QntxError):
    """There is no folder at this path. Give the path of a local git repository."""


class NotARepository(QntxError):
    """The folder belongs to no git repository. Give a folder in one, or clone one first."""


class NoCommits(QntxError):
    """The repository has no commits on the branch it is on. Commit something first."""


class GitFailed(QntxError):
    """Git could not read this repository. Run `git fsck` in it."""
