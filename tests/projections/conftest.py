"""A host on each database, opened where a test asks and closed when it ends."""

from collections.abc import Callable, Iterator

import pytest

from qntx_es import Domain, Host


@pytest.fixture
def host_of(url: str) -> Iterator[Callable[..., Host]]:
    """Make hosts of domains over one database, as many as a test likes."""
    hosts: list[Host] = []

    def make(*domains: Domain) -> Host:
        host = Host(url, domains)
        hosts.append(host)
        host.upgrade()
        return host

    yield make
    for host in hosts:
        host.close()
