"""What is kept of a test that failed: the log it was about, which another machine can import."""

import re
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from qntx_es.errors import QntxError
from qntx_es.host import Host

NAME_CHARACTERS_MAX = 150


def keep_log(url: str, folder: Path, test: str) -> str:
    """Export the log at `url` to a file that is named after the test; say where, or why not."""
    name = re.sub(r"[^\w.]+", "-", test).strip("-")[-NAME_CHARACTERS_MAX:]
    file = folder / f"{name}.ndjson"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with Host(url) as host:
            exported = host.export_log(file)
    except (QntxError, SQLAlchemyError, OSError) as error:
        return f"its log could not be kept: {error}"
    return (
        f"its log of {exported.digest.position} attestations is kept: "
        f"`qntx-es --database sqlite:///kept.db import {file}`"
    )
