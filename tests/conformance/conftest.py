"""A fresh log for every test case of the library, named in the environment that it reads."""

from collections.abc import Generator
from pathlib import Path

import pytest


@pytest.fixture
def recorders_by_environment(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Name our recorders and an empty database of the class's kind, as an application would."""
    urls = {"Memory": "sqlite://", "File": f"sqlite:///{tmp_path / 'log.db'}"}
    kind = request.cls.kind
    url = urls[kind] if kind in urls else request.getfixturevalue("postgres_url")
    monkeypatch.setenv("PERSISTENCE_MODULE", "qntx_es.recorders")
    monkeypatch.setenv("QNTX_DATABASE_URL", url)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Count a skipped test as failed: conformance is all or nothing."""
    report = yield
    if report.skipped:
        report.outcome = "failed"
    return report
