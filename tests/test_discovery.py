"""Domains by name: nothing but what was named is imported, and a broken one breaks itself."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qntx_es import Domain, DomainRefused, Host, UnknownDomain
from qntx_es.discovery import GROUP, find_domain

# Whichever are there: any of them may be deleted.
BUILT_IN = sorted(
    package.parent.name for package in Path(__file__).parents[1].glob("domains/*/__init__.py")
)
Install = Callable[[str, str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Install packages of one module each, whose entry point has the name of a domain."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(name: str, source: str) -> None:
        (tmp_path / f"its_{name}.py").write_text(source)
        metadata = tmp_path / f"its_{name}-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: its-{name}\nVersion: 1\n")
        (metadata / "entry_points.txt").write_text(f"[{GROUP}]\n{name} = its_{name}:{name}\n")

    yield install
    for name in set(sys.modules) - before:
        if name.startswith("its_"):
            del sys.modules[name]


def test_an_installed_domain_is_found_by_its_name(install: Install) -> None:
    """What a package announces is found, and comes with its home."""
    install("music", "from qntx_es import Domain\nmusic = Domain('music')\n")

    found = find_domain("music")

    assert isinstance(found.domain, Domain)
    assert (found.domain.name, found.home) == ("music", "its_music")


def test_nothing_but_what_was_named_is_imported(install: Install) -> None:
    """Importing is trusting: an installed domain that nobody enabled stays closed."""
    install("music", "from qntx_es import Domain\nmusic = Domain('music')\n")
    install("trap", "raise SystemExit('it was imported')\n")

    find_domain("music")
    with pytest.raises(UnknownDomain):
        find_domain("unheard")

    assert "its_trap" not in sys.modules


@pytest.mark.parametrize("name", ["unheard", "", "..", "os.path", "../code", "a b", "__init__"])
def test_an_unknown_name_is_refused_with_a_suggestion(install: Install, name: str) -> None:
    """A name that nobody has is `UnknownDomain`, never an import of something else."""
    install("unheart", "")

    with pytest.raises((UnknownDomain, DomainRefused)) as raised:
        find_domain(name)

    if name == "unheard":
        assert "did you mean `unheart`" in str(raised.value)


@pytest.mark.parametrize(
    "source",
    [
        "raise RuntimeError('broken')",
        "import a_package_that_is_not_there",
        "raise SystemExit(1)",
        "syntax error",
        "",
        "broken = 'no domain'",
        "from qntx_es import Domain\nbroken = Domain('Not A Name')",
        "from qntx_es import Domain\nbroken = Domain('broken', actors=('',))",
        "from qntx_es import Domain\nbroken = Domain('another')",
    ],
)
def test_a_broken_domain_is_named_and_stops_no_other(
    install: Install, sqlite_url: str, source: str
) -> None:
    """One that cannot be taken up is left out, kept with its reason, and the rest goes on."""
    install("broken", source)
    install("music", "from qntx_es import Domain\nmusic = Domain('music')\n")

    host = Host(sqlite_url, ["broken", "music", "unheard"])

    assert sorted(host.failed) == ["broken", "unheard"]
    assert sorted(host.domains) == ["music", "pulse"]
    with pytest.raises(DomainRefused):
        host.domain("broken")
    with pytest.raises(UnknownDomain):
        host.domain("unheard")


def test_a_domain_whose_tables_cannot_be_made_stops_no_other(install: Install, url: str) -> None:
    """A table that the database refuses is its domain's trouble alone."""
    install(
        "broken",
        "from sqlalchemy import CheckConstraint, Column, String\n"
        "from qntx_es import Domain\n"
        "broken = Domain('broken')\n"
        "broken.table('x', Column('e', String, primary_key=True), CheckConstraint('nonsense('))\n",
    )
    install("music", "from qntx_es import Domain\nmusic = Domain('music')\n")
    host = Host(url, ["broken", "music"])

    try:
        host.upgrade()
        host.catch_up()
    finally:
        host.close()

    assert "music" in {status.name for status in host.statuses()}
    host.close()


def test_a_value_that_cannot_run_is_refused_at_once() -> None:
    """A domain handed over by its author is refused where he stands, not left out."""
    with pytest.raises(DomainRefused):
        Host("sqlite://", [Domain("Not A Name")])


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_domains_are_found_by_name(name: str) -> None:
    """What the repository ships comes in by the same door."""
    found = find_domain(name)

    assert found.domain.name == name
    assert found.domain.problems() == []
