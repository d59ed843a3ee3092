"""What the shipped domains once wrote, they read for ever.

The corpus grows and is never rewritten: a new schema version adds payloads of its own, and those of
every version before go on meaning what they meant.
"""

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from qntx_es import Attestation, Domain, Host
from qntx_es.discovery import find_domain
from qntx_es.domain import RESERVED
from qntx_es.pulse import pulse

TESTS = Path(__file__).parents[1]
CORPORA = {
    "pulse": TESTS / "pulse" / "golden.json",
    **{one.parent.name: one for one in sorted(TESTS.glob("domains/*/golden.json"))},
}


class Golden(NamedTuple):
    """A payload as it was once written, and what it says."""

    context: str
    version: int
    payload: dict[str, Any]
    reads_as: dict[str, Any]


def domain_of(name: str) -> Domain:
    """Return a shipped domain; one that was taken out of the checkout takes its corpus along."""
    if name == "pulse":
        return pulse
    if not (TESTS.parent / "domains" / name).is_dir():
        pytest.skip(f"the domain {name} is not in this checkout")
    return find_domain(name).domain


def corpus_of(name: str) -> Iterator[Golden]:
    """Yield what is kept of a domain."""
    for context, versions in json.loads(CORPORA[name].read_text()).items():
        for version, payloads in versions.items():
            for one in payloads:
                yield Golden(context, int(version), one["payload"], one["reads_as"])


@pytest.mark.parametrize("name", CORPORA)
def test_every_old_payload_means_what_it_meant(name: str) -> None:
    """Each payload of each version reads, through the upcasters, as it did when it was written."""
    domain = domain_of(name)
    for one in corpus_of(name):
        chain = domain.chain(domain.payloads[one.context])
        read = chain.decode_of(one.version)(json.dumps(one.payload))
        assert json.loads(read.model_dump_json()) == one.reads_as


@pytest.mark.parametrize("name", CORPORA)
def test_every_version_of_every_context_is_in_the_corpus(name: str) -> None:
    """A domain cannot take up a context or a schema version without leaving payloads of it here."""
    domain = domain_of(name)

    kept = {(one.context, one.version) for one in corpus_of(name)}

    assert kept == {
        (context, version)
        for context, payload in domain.payloads.items()
        for version in range(1, payload.schema_version + 1)
    }


@pytest.mark.parametrize("name", [one for one in CORPORA if one != "pulse"])
def test_a_log_of_old_payloads_is_projected(name: str, url: str) -> None:
    """A log that holds nothing but the corpus is appended and projected without a failure."""
    domain = domain_of(name)
    said = [
        Attestation(
            context=one.context,
            entity=f"old:{number}",
            actor="once@past",
            payload=one.payload,
            schema_version=one.version,
        )
        for number, one in enumerate(corpus_of(name))
        if not one.context.startswith(RESERVED)
    ]
    with closing(Host(url, [domain])) as host:
        host.upgrade()
        host.append(said)
        host.catch_up()

        assert {one.failure for one in host.statuses()} == {None}
        assert host.rebuild(name).is_same
