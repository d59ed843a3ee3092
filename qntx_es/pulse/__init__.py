"""The job system: a domain like any other, and the worker that does what its rows say."""

from qntx_es.pulse.declared import Declarations
from qntx_es.pulse.fold import pulse
from qntx_es.pulse.queue import Queue
from qntx_es.pulse.schedules import Ticker
from qntx_es.pulse.worker import Places, Worker

__all__ = ["Declarations", "Places", "Queue", "Ticker", "Worker", "pulse"]
