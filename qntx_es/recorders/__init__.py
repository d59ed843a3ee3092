"""The recorders of the `eventsourcing` library, over our log.

Its applications run unchanged with `PERSISTENCE_MODULE=qntx_es.recorders` and the database in
`QNTX_DATABASE_URL`: what they record are attestations like all others, in one order with them,
so that Ax finds them and any domain projects them. Nothing outside this folder imports the
library, and the framework never imports this folder: who does not use it does not load it.

The library takes the one class here that is a factory, so there is exactly one, for its
applications of both kinds.
"""

from qntx_es.recorders.application import LogApplicationRecorder
from qntx_es.recorders.decisions import LogDCBRecorder
from qntx_es.recorders.factory import Factory
from qntx_es.recorders.snapshots import LogAggregateRecorder
from qntx_es.recorders.state import CanonicalTranscoder, JSONMapper
from qntx_es.recorders.tracking import LogProcessRecorder, LogTrackingRecorder

__all__ = [
    "CanonicalTranscoder",
    "Factory",
    "JSONMapper",
    "LogAggregateRecorder",
    "LogApplicationRecorder",
    "LogDCBRecorder",
    "LogProcessRecorder",
    "LogTrackingRecorder",
]
