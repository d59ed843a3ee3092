"""Settings: who wins, and what is refused with its place."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from qntx_es import Host, InvalidConfig, Settings
from qntx_es.config import DATABASE_URL, BudgetSettings, QueueSettings, read_settings


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


FILE = """
[database]
url = "sqlite:///file.db"
lock_seconds = 2

[domains]
enabled = ["code", "finance"]

[pulse]
threads = 7
"""


def test_defaults_need_nothing(folder: Path) -> None:
    """Without a file, a variable or a flag there are defaults."""
    assert read_settings({}, environment={}) == Settings()
    assert Settings().database_url == DATABASE_URL
    assert list(folder.iterdir()) == []


def test_a_flag_wins_over_the_environment_and_that_over_the_file(folder: Path) -> None:
    """Each setting comes from the nearest place that names it."""
    (folder / "qntx.toml").write_text(FILE)
    environment = {"QNTX_DATABASE_URL": "sqlite:///variable.db", "QNTX_JOB_THREADS": "5"}

    settings = read_settings({"job_threads": 3, "domains": None}, environment=environment)

    assert settings == Settings(
        database_url="sqlite:///variable.db",
        lock_seconds=2,
        domains=("code", "finance"),
        job_threads=3,
    )


@pytest.mark.parametrize(
    ("given", "wanted"),
    [("code,finance", ("code", "finance")), (" code , ,finance,", ("code", "finance")), ("", ())],
)
def test_domains_are_listed_with_commas(folder: Path, given: str, wanted: tuple[str, ...]) -> None:
    """A list in a variable or a flag is one text, and empty means none."""
    assert folder.exists()
    assert read_settings({}, environment={"QNTX_DOMAINS": given}).domains == wanted
    assert read_settings({"domains": given}, environment={}).domains == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("[database]\nurll = 'x'", "did you mean `database.url`"),
        ("[domain]\nenabled = []", "domain.enabled"),
        ("url = 'x'", "no setting `url`"),
        ("[database", "no TOML"),
        ("[database]\nurl = 3", "database_url"),
        ("[pulse]\nthreads = 0", "job_threads"),
        ("[pulse]\nthreads = 257", "job_threads"),
        ("[pulse]\nthreads = 'many'", "job_threads"),
        ("[database]\nlock_seconds = 0", "lock_seconds"),
        ("[database]\nlock_seconds = -1", "lock_seconds"),
        ("[database]\nlock_seconds = nan", "lock_seconds"),
        ("[database]\nlock_seconds = inf", "lock_seconds"),
        ("[database]\nlock_seconds = 1e300", "lock_seconds"),
        ("[database]\nlock_seconds = 0.0001", "lock_seconds"),
        ("[domains]\nenabled = 3", "domains"),
    ],
)
def test_a_wrong_setting_is_refused_with_its_name(folder: Path, text: str, wanted: str) -> None:
    """What cannot be meant is `InvalidConfig`, naming what and where."""
    (folder / "qntx.toml").write_text(text)

    with pytest.raises(InvalidConfig) as raised:
        read_settings({}, environment={})

    assert wanted in str(raised.value)


@pytest.mark.parametrize("kind", ["absent", "folder", "bytes"])
def test_a_file_that_was_asked_for_must_be_there(folder: Path, kind: str) -> None:
    """Naming a file that is not there, is a folder or is no text is refused by name."""
    named = folder / "other.toml"
    if kind == "folder":
        named.mkdir()
    elif kind == "bytes":
        named.write_bytes(b"\xff\xfe")

    with pytest.raises(InvalidConfig, match=r"other\.toml"):
        read_settings({}, environment={"QNTX_CONFIG": str(named)})
    with pytest.raises(InvalidConfig, match=r"other\.toml"):
        read_settings({"config": str(named)}, environment={})


def test_an_unknown_flag_is_refused(folder: Path) -> None:
    """There is no setting but those there are."""
    assert folder.exists()
    with pytest.raises(InvalidConfig, match="colour"):
        read_settings({"colour": "red"}, environment={})


def test_settings_are_frozen() -> None:
    """What was read once stays."""
    with pytest.raises(ValidationError):
        Settings().job_threads = 3  # type: ignore[misc]


@pytest.mark.parametrize("seconds", [0.2, 10, 3_600])
def test_any_accepted_wait_makes_a_host(seconds: float) -> None:
    """What the settings let through, a host can be made of."""
    Host("sqlite://", settings=Settings(lock_seconds=seconds))


def test_no_message_shows_a_password(folder: Path) -> None:
    """A refused setting does not print the URL beside it."""
    assert folder.exists()
    environment: dict[str, Any] = {
        "QNTX_DATABASE_URL": "postgresql://user:secret-word@host/db",
        "QNTX_JOB_THREADS": "none",
    }
    with pytest.raises(InvalidConfig) as raised:
        read_settings({}, environment=environment)

    assert "secret-word" not in str(raised.value)


def test_queues_and_budgets_have_sections_of_their_own(folder: Path) -> None:
    """Each queue and budget is a table of the file, and a rate or a window has to be one."""
    (folder / "qntx.toml").write_text(
        '[pulse.queues.llm]\nlimit = 4\nrate = "100/m"\nweight = 3\n'
        '[pulse.budgets.llm-day]\nunit = "EUR"\namount = 5\nwindow = "1d"\n'
    )

    settings = read_settings({}, environment={})

    assert settings.queues == {"llm": QueueSettings(limit=4, rate="100/m", weight=3)}
    assert settings.budgets == {"llm-day": BudgetSettings(unit="EUR", amount=5, window="1d")}
    (folder / "qntx.toml").write_text('[pulse.queues.llm]\nrate = "often"\n')
    with pytest.raises(InvalidConfig, match="queues"):
        read_settings({}, environment={})
