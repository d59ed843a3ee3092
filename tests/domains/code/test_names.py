"""Names are stable, hold no credential and no person, and are always ones the log takes."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from domains.code.names import name, pseudonym, readable, repository_of_remote
from qntx_es import Attestation

QNTX = "github.com/teranos/QNTX"


@pytest.mark.parametrize(
    "url",
    [
        "https://github.com/teranos/QNTX.git",
        "https://github.com/teranos/QNTX",
        "https://github.com/teranos/QNTX/",
        "https://github.com:443/teranos/QNTX.git",
        "https://GitHub.com/teranos/QNTX.git",
        "https://user:token@github.com/teranos/QNTX.git",
        "https://token@github.com/teranos/QNTX.git?private=token#token",
        "http://github.com:80//teranos//QNTX.git",
        "git://github.com/teranos/QNTX.git",
        "ssh://git@github.com/teranos/QNTX.git",
        "ssh://git@github.com:2222/teranos/QNTX.git",
        "git+ssh://git@github.com/teranos/QNTX.git",
        "git@github.com:teranos/QNTX.git",
        "git@github.com:/teranos/QNTX.git",
        "github.com:teranos/QNTX",
        "user:token@github.com:teranos/QNTX.git",
        "  git@github.com:teranos/QNTX.git\n",
    ],
)
def test_all_urls_of_a_repository_give_it_one_name(url: str) -> None:
    """Wherever and however a repository was cloned from its remote, it has one name."""
    assert repository_of_remote(url) == QNTX


@pytest.mark.parametrize(
    "url",
    [
        "",
        ".",
        "..",
        "/srv/git/project.git",
        "../project",
        "./odd:name",
        "file:///srv/git/project.git",
        "C:\\projects\\project",
        "C:/projects/project",
        "https://",
        "https:///teranos/QNTX",
        "https://github.com",
        "https://github.com/.git",
        "https://github.com:port/teranos/QNTX",
        "https://[::1/teranos/QNTX",
        "https://user:to/ken@github.com/teranos/QNTX.git",
        "ext::sh -c whoami",
        "relative/folder",
    ],
)
def test_a_url_that_names_no_host_gives_no_name(url: str) -> None:
    """A remote on this machine, or one that cannot be understood, names no repository."""
    assert repository_of_remote(url) is None


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://git.example.org:8443/a/b.git", "git.example.org:8443/a/b"),
        ("ssh://git@[2001:db8::1]:22/a/b.git", "2001:db8::1/a/b"),
        ("git@[2001:db8::1]:a/b.git", "2001:db8::1/a/b"),
        ("https://example.org/~ada/b.git", "example.org/~ada/b"),
    ],
)
def test_what_tells_two_servers_apart_stays_in_the_name(url: str, expected: str) -> None:
    """A web port of its own, an address or a folder of a user's is part of the name."""
    assert repository_of_remote(url) == expected


SECRET = "s3cr3t"  # noqa: S105 - what must not be found
AROUND = st.text(alphabet="abc.:/@[]%?#", max_size=6)


@given(st.sampled_from(["https://", "ssh://", "git://", ""]), AROUND, AROUND)
@example("https://", "u:1/", "")
@example("", "u:", "")
@example("https://", "", "/:?")
def test_nothing_before_an_at_sign_is_in_a_name(scheme: str, before: str, after: str) -> None:
    """No credential of a remote's URL is ever part of a repository's name."""
    named = repository_of_remote(f"{scheme}{before}{SECRET}{after}@github.com/teranos/QNTX.git")
    assert named is None or SECRET not in named


@given(st.binary(min_size=1).filter(lambda raw: b"\0" not in raw))
@example(b"caf\xc3\xa9")
@example(b"\xed\xa0\x80")
@example(b"\xc2\x85\x1b[31m\n")
@example(b"\xf0\x9f\x90\x8d" * 300)
@example(b"a" * 5000)
def test_any_name_of_gits_is_one_the_log_takes(raw: bytes) -> None:
    """Whatever bytes git has for a name, an attestation may be about it."""
    named = Attestation(context="named", entity=name(raw), actor="test@user", payload={})
    assert named.entity == name(raw)


@given(st.binary(min_size=600, max_size=610), st.binary(min_size=600, max_size=610))
def test_names_that_are_cut_stay_apart(one: bytes, other: bytes) -> None:
    """Two names that are too long and differ only in the end remain two names."""
    start = b"a" * 600
    assert (name(start + one) == name(start + other)) == (one == other)


def test_odd_bytes_are_visible() -> None:
    """A byte that is no UTF-8, or that would move a cursor, is shown as an escape."""
    assert readable(b"caf\xe9\n") == r"caf\xe9\x0a"
    assert readable("café 🐍".encode()) == "café 🐍"


def test_an_author_is_a_hash_of_the_address_and_nothing_else() -> None:
    """One address, in any case, is one pseudonym; it holds nothing of the address."""
    assert pseudonym(b"Ada@Example.org") == pseudonym(b"ada@example.org") == "author-cfe00dde46"
    assert pseudonym(b"bob@example.org") != pseudonym(b"ada@example.org")
    assert pseudonym(b"") == "author-unknown"
