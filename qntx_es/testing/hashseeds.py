"""Whether a log gives something else under another hash seed: a question for other processes.

The order of a set is the same throughout a process, so it cannot be seen from inside. What could
not be asked is *not run*, and says so: it is never taken for a proof.
"""

import logging
from concurrent.futures import Future, ThreadPoolExecutor

from qntx_es.domain import Domain
from qntx_es.testing.interpreters import Interpreters, Parting, ReplayNotRun, Touch

logger = logging.getLogger(__name__)

# They work while we fold the same log here: an answer is awaited in a thread of its own.
_waiting = ThreadPoolExecutor(1, thread_name_prefix="hashseeds")
# One interpreter a seed for the whole session: they end with this process.
_interpreters = Interpreters()
_told: set[str] = set()


def differs_by_hash_seed(domain: Domain, exported: bytes) -> bool | None:
    """Tell whether interpreters with other hash seeds disagree; None where none can be asked."""
    try:
        first, *others = _interpreters.replay(domain, exported).values()
    except ReplayNotRun as error:
        if str(error) not in _told:
            logger.warning("hashseed was not run: %s", error)
            _told.add(str(error))
        return None
    return any(one != first for one in others)


def ask_by_hash_seed(domain: Domain, exported: bytes) -> "Future[bool | None]":
    """Ask the same, and return at once: the answer comes while something else is done."""
    return _waiting.submit(differs_by_hash_seed, domain, exported)


def parting_of(domain: Domain, exported: bytes) -> Parting | None:
    """Return where interpreters with other hash seeds part, None where they agree."""
    return _interpreters.parting(domain, exported)


def touches_of(domain: Domain, exported: bytes) -> tuple[Touch, ...]:
    """Return what handlers reach for beside their arguments; nothing where nobody can be asked."""
    try:
        first, *_ = _interpreters.replay(domain, exported).values()
    except ReplayNotRun:
        return ()  # the check has said so already
    return first.touches
