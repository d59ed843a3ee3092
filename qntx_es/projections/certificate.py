"""The proof of a rebuild or a verify, to be kept elsewhere than the database it speaks of.

A certificate is a JSON text. Its SHA-256 is attested, with a swap in the swap's own transaction, so
`sha256sum` tells whether a file is the one that the log speaks of; and the digest of the log that
it carries tells whether the log was changed since, at or below the position compared.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256

from qntx_es.attestation import Attestation, Json, Payload, instant
from qntx_es.database import Database
from qntx_es.digests import LogDigest
from qntx_es.domain import Domain
from qntx_es.log import Log
from qntx_es.projections.comparison import Comparison, TableProof
from qntx_es.projections.derived import DeriveProof
from qntx_es.projections.fingerprint import fingerprint


class ModelRebuilt(Payload, context="qntx.rebuilt"):
    """A domain's read model, the entity, was built anew, compared and swapped in.

    `certificate` is the SHA-256 of the certificate, `log_digest` the digest of the log up to
    `compared_at`, and `is_same` whether nothing differed there. Swapped at `position`.
    """

    certificate: str
    version: int
    generation: int
    compared_at: int
    position: int
    log_digest: str
    is_same: bool


class ModelVerified(Payload, context="qntx.verified"):
    """A domain's read model, the entity, was compared with the fold of the log.

    `certificate` is the SHA-256 of the certificate, `log_digest` the digest of the log up to
    `compared_at`, and `is_same` whether nothing differed there.
    """

    certificate: str
    version: int
    compared_at: int
    log_digest: str
    is_same: bool


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What a certificate says beside what was compared: whose tables, which code and log, by whom.

    `log_digest` is of the log up to the position compared.
    """

    domain: str
    version: int
    fingerprint: str | None
    epoch: str
    log_digest: LogDigest
    actor: str
    made_at: str


def circumstances(
    database: Database, log: Log, domain: Domain, *, position: int, actor: str
) -> Circumstances:
    """Return those of a comparison at `position`. The first time, all of the log is read."""
    with database.read() as connection:
        now = database.now(connection)
    return Circumstances(
        domain=domain.name,
        version=domain.version,
        fingerprint=fingerprint(domain),
        epoch=log.epoch(),
        log_digest=log.digest_at(position),
        actor=actor,
        made_at=instant(now).isoformat(timespec="microseconds").replace("+00:00", "Z"),
    )


@dataclass(frozen=True, slots=True)
class Certificate:
    """The text of a certificate; `digest` is its SHA-256."""

    text: str

    @property
    def digest(self) -> str:
        """Return what `sha256sum` says of the text in a file."""
        return sha256(self.text.encode()).hexdigest()


def certificate_of(
    said: Circumstances,
    found: Comparison,
    *,
    expected: Sequence[str] = (),
    swapped_at: int | None = None,
    generation: int | None = None,
) -> Certificate:
    """Certify a comparison, and the swap that followed if one did."""
    document: Json = {
        "certificate": "verified" if swapped_at is None else "rebuilt",
        "domain": said.domain,
        "version": said.version,
        "version_live": found.version,
        "fingerprint": said.fingerprint,
        "compared_at": found.position,
        "swapped_at": swapped_at,
        "generation": generation,
        "epoch": said.epoch,
        "log_digest": said.log_digest.value,
        "is_same": found.is_same,
        "expected": list(expected),
        "tables": [_of_table(proof) for proof in found.tables],
        "derived": [_of_handler(proof) for proof in found.derived],
        "actor": said.actor,
        "made_at": said.made_at,
    }
    return Certificate(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def rebuilt(
    said: Circumstances, certificate: Certificate, found: Comparison, *, position: int, of: int
) -> Attestation:
    """Return the attestation of a swap at `position`, to the generation `of`."""
    payload = ModelRebuilt(
        certificate=certificate.digest,
        version=said.version,
        generation=of,
        compared_at=found.position,
        position=position,
        log_digest=said.log_digest.value,
        is_same=found.is_same,
    )
    return _attested(said, payload)


def verified(said: Circumstances, certificate: Certificate, found: Comparison) -> Attestation:
    """Return the attestation of a verify."""
    payload = ModelVerified(
        certificate=certificate.digest,
        version=said.version,
        compared_at=found.position,
        log_digest=said.log_digest.value,
        is_same=found.is_same,
    )
    return _attested(said, payload)


def _attested(said: Circumstances, payload: Payload) -> Attestation:
    return Attestation(
        context=payload.context, entity=said.domain, actor=said.actor, payload=payload
    )


def _of_table(proof: TableProof) -> Json:
    return {
        "table": proof.table,
        "live": None if proof.live is None else asdict(proof.live),
        "rebuilt": None if proof.rebuilt is None else asdict(proof.rebuilt),
        "differing": proof.differing,
        "missing": proof.missing,
        "surplus": proof.surplus,
        "columns": dict(proof.columns),
    }


def _of_handler(proof: DeriveProof) -> Json:
    return {
        "handler": proof.handler,
        "equal": proof.equal,
        "changed": proof.changed,
        "missing": proof.missing,
        "surplus": proof.surplus,
    }
