"""A log as a file, out of one database and into another: the same log, to the byte."""

from qntx_es.transfer.exporting import Exported, export_log
from qntx_es.transfer.files import AnyFile, reading, writing
from qntx_es.transfer.importing import Imported, import_log
from qntx_es.transfer.lines import Progress, untold

__all__ = [
    "AnyFile",
    "Exported",
    "Imported",
    "Progress",
    "export_log",
    "import_log",
    "reading",
    "untold",
    "writing",
]
