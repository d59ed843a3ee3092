"""One run of one command: its settings, where its results go, and the hosts it may open.

Commands that only look open the log without any domain, so they work when a domain is what is
broken. Where domains are needed, one that cannot be loaded is named on stderr, and the rest go on;
only a name that was typed, and that nobody has, is refused.
"""

import logging
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from time import gmtime
from typing import Any

import typer

from qntx_es.cli.exits import code_of
from qntx_es.cli.output import Output, shown
from qntx_es.config import Settings, read_settings
from qntx_es.discovery import find_domain
from qntx_es.errors import DomainRefused
from qntx_es.host import Host

PLAIN = "qntx-es: %(message)s"
TIMED = "%(asctime)s %(levelname)s %(name)s: %(message)s"


@dataclass(frozen=True, slots=True)
class Session:
    """What a command is handed."""

    settings: Settings
    out: Output
    typed_domains: tuple[str, ...]

    @classmethod
    def opened(cls, flags: Mapping[str, Any], *, as_json: bool) -> "Session":
        """Read the settings. Raises `InvalidConfig`."""
        out = Output(as_json=as_json)
        log_to_stderr(PLAIN, logging.WARNING)
        settings = read_settings(flags)
        typed = settings.domains if flags.get("domains") is not None else ()
        return cls(settings, out, typed)

    @contextmanager
    def log_only(self) -> Iterator[Host]:
        """Open the database without the code of any domain."""
        with Host(self.settings.database_url, settings=self.settings) as host:
            yield host

    @contextmanager
    def host(self, domains: Iterable[str] | None = None, *, url: str = "") -> Iterator[Host]:
        """Open the database with the enabled domains, or with `domains`."""
        for name in self.typed_domains:
            with suppress(DomainRefused):  # the host reports it, and goes on
                find_domain(name)
        names = self.settings.domains if domains is None else domains
        url = url or self.settings.database_url
        with Host(url, domains=names, settings=self.settings) as host:
            yield host


def wanted_domain(host: Host, name: str) -> str:
    """Return the name of a domain that runs, or end: why one does not was said when it failed."""
    if name in host.failed:
        raise typer.Exit(code_of(host.failed[name]))
    return host.domain(name).name


class _Stderr(logging.Handler):
    """Writes records where stderr is now, since a progress bar puts itself in between."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record, whatever characters it holds."""
        lines = self.format(record).splitlines()
        print("\n".join(map(shown, lines)), file=sys.stderr, flush=True)


def log_to_stderr(layout: str, level: int) -> None:
    """Let the log of qntx-es be seen from `level` on."""
    handler = _Stderr()
    formatter = logging.Formatter(layout, "%Y-%m-%dT%H:%M:%SZ")
    formatter.converter = gmtime
    handler.setFormatter(formatter)
    logger = logging.getLogger("qntx_es")
    logger.handlers = [handler]
    logger.setLevel(level)
