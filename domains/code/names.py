"""What statements about code are about: repositories, files and authors, by stable names.

A name goes into an append-only log, so three things must never be in one: a credential (a remote's
URL often holds one), a person (an author is a hash of an e-mail address), and bytes that the log
would refuse (git's names are bytes, of any kind). The same thing must get the same name on every
machine, or it would be two things.
"""

import re
from hashlib import sha256
from unicodedata import category
from urllib.parse import urlsplit

# The log takes names of at most 512 characters and 1024 bytes; a character has at most 4 bytes.
NAME_CHARACTERS_MAX = 512
NAME_BYTES_MAX = 1024
CUT_CHARACTERS = 200

_SCHEMES = frozenset({"git", "git+ssh", "http", "https", "ssh", "ssh+git"})
_PORTS_IMPLIED = {"http": 80, "https": 443}
_SCP_LIKE = re.compile(r"(?P<host>\[[^\]]+\]|[^:/\[\]]{2,}):(?P<path>(?!//|:).+)")


def readable(raw: bytes) -> str:
    r"""Decode a name of git's for people: odd bytes and control characters become `\xff`."""
    text = raw.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(_escaped(character) for character in text)


def _escaped(character: str) -> str:
    return f"\\x{ord(character):02x}" if category(character) == "Cc" else character


def name(raw: bytes) -> str:
    """Return a readable name that the log takes: one too long is cut, and ends in its hash."""
    text = readable(raw)
    if len(text) <= NAME_CHARACTERS_MAX and len(text.encode()) <= NAME_BYTES_MAX:
        return text
    return f"{text[:CUT_CHARACTERS]}…{sha256(raw).hexdigest()[:16]}"


def pseudonym(email: bytes) -> str:
    """Return the name an author goes by here: ten digits of the SHA-256 of the e-mail address."""
    known = email.strip().lower()
    return f"author-{sha256(known).hexdigest()[:10]}" if known else "author-unknown"


def repository_of_remote(url: str) -> str | None:
    """Return `github.com/teranos/QNTX` for any of the URLs it is cloned from, or None.

    None where the URL names no host, or where a credential could be left in the name.
    """
    found = _split_url(url.strip()) if "://" in url else _split_scp_like(url.strip())
    if found is None:
        return None
    host, path = found
    folders = [folder for folder in path.split("/") if folder]
    if folders:
        folders[-1] = folders[-1].removesuffix(".git")
    if not host or not folders or not folders[-1]:
        return None
    joined = "/".join([host.lower(), *folders])
    return None if "@" in joined else name(joined.encode())


def _split_url(url: str) -> tuple[str, str] | None:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:  # a port that is no number, or a broken IPv6 address
        return None
    # A credential that was not escaped may have ended the host early; what is left of it stays out.
    is_clear = "@" not in parts.path + parts.query + parts.fragment
    if parts.scheme not in _SCHEMES or not parts.hostname or not is_clear:
        return None
    is_told_apart = parts.scheme in _PORTS_IMPLIED and port not in (
        None,
        _PORTS_IMPLIED[parts.scheme],
    )
    return (f"{parts.hostname}:{port}" if is_told_apart else parts.hostname), parts.path


def _split_scp_like(url: str) -> tuple[str, str] | None:
    """Split `git@github.com:teranos/QNTX.git`; what stands before the last @ of the host goes."""
    first, slash, rest = url.partition("/")
    matched = _SCP_LIKE.fullmatch(first.rpartition("@")[2] + slash + rest)
    return (matched["host"].strip("[]"), matched["path"]) if matched else None
