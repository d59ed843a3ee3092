"""The job system: a domain like any other, and the worker that does what its rows say."""

from qntx_es.pulse.fold import pulse
from qntx_es.pulse.schedules import Ticker
from qntx_es.pulse.worker import Worker

__all__ = ["Ticker", "Worker", "pulse"]
