"""Whether a log gives something else under another hash seed: a question for other processes.

The order of a set is the same throughout a process, so it cannot be seen from inside.
"""

from collections.abc import Callable, Mapping, Sequence

from qntx_es.attestation import Attestation
from qntx_es.domain import Domain

# Folds a log under each hash seed, and returns a digest of what came of it by seed.
_digests_by_seed: Callable[[Domain, Sequence[Attestation]], Mapping[str, str]] | None = None


def differs_by_hash_seed(domain: Domain, log: Sequence[Attestation]) -> bool | None:
    """Tell whether interpreters with other hash seeds disagree; None where none can be asked."""
    if _digests_by_seed is None:
        return None
    return len(set(_digests_by_seed(domain, log).values())) > 1
