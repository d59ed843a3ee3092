"""The factory that the library finds, for applications and DCB applications alike.

Which database is one setting, `QNTX_DATABASE_URL`, or `<APPLICATION>_QNTX_DATABASE_URL` for one
application alone. On an empty database the tables are made; outdated ones are refused, since
only who runs the host decides when they change.
"""

from contextlib import ExitStack
from typing import TypeVar

from eventsourcing.dcb.persistence import DCBInfrastructureFactory
from eventsourcing.persistence import (
    InfrastructureFactory,
    InfrastructureFactoryError,
    Recorder,
    Transcoder,
)
from eventsourcing.utils import Environment, EnvType, resolve_topic, strtobool

from qntx_es.database import Database
from qntx_es.errors import QntxError
from qntx_es.recorders.application import LogApplicationRecorder
from qntx_es.recorders.decisions import LogDCBRecorder
from qntx_es.recorders.desk import Desk
from qntx_es.recorders.errors import library_errors
from qntx_es.recorders.snapshots import LogAggregateRecorder
from qntx_es.recorders.state import CanonicalTranscoder
from qntx_es.recorders.tracking import LogProcessRecorder, LogTrackingRecorder

R = TypeVar("R", bound=Recorder)


class Factory(
    InfrastructureFactory[LogTrackingRecorder], DCBInfrastructureFactory[LogTrackingRecorder]
):
    """Makes the recorders of one application, which share a database and an actor.

    `CREATE_TABLE=n` makes no tables. `ORIGINATOR_ID_TYPE=text` is for applications whose ids are
    texts: by default an id that reads as a UUID is one.
    """

    DATABASE_URL = "QNTX_DATABASE_URL"
    ORIGINATOR_ID_TYPE = "ORIGINATOR_ID_TYPE"
    CREATE_TABLE = "CREATE_TABLE"

    def __init__(self, env: Environment | EnvType | None) -> None:
        super().__init__(env)
        id_type = self.env.get(self.ORIGINATOR_ID_TYPE, "uuid").lower()
        if id_type not in ("uuid", "text"):
            raise InfrastructureFactoryError(
                f"{self.ORIGINATOR_ID_TYPE} is `{id_type}`: give `uuid` or `text`"
            )
        self.desk = Desk(self._open(), self.env.name, has_uuids=id_type == "uuid")

    def transcoder(self) -> Transcoder:
        """Make the transcoder that is asked for, or else the one whose JSON is canonical."""
        if self.env.get(self.TRANSCODER_TOPIC):
            return super().transcoder()
        return CanonicalTranscoder()

    def aggregate_recorder(self, purpose: str = "events") -> LogAggregateRecorder:
        """Make a recorder beside the log, for snapshots."""
        return LogAggregateRecorder(self.desk, purpose)

    def application_recorder(self) -> LogApplicationRecorder:
        """Make the recorder of an application's aggregates."""
        made = self._class(self.APPLICATION_RECORDER_TOPIC, LogApplicationRecorder)
        return made(self.desk)

    def tracking_recorder(
        self, tracking_recorder_class: type[LogTrackingRecorder] | None = None
    ) -> LogTrackingRecorder:
        """Make the recorder of a projection: its view."""
        made = tracking_recorder_class or self._class(
            self.TRACKING_RECORDER_TOPIC, LogTrackingRecorder
        )
        return made(self.desk)

    def process_recorder(self) -> LogProcessRecorder:
        """Make the recorder of an application that follows others."""
        return self._class(self.PROCESS_RECORDER_TOPIC, LogProcessRecorder)(self.desk)

    def dcb_recorder(self) -> LogDCBRecorder:
        """Make the recorder of a DCB application."""
        return LogDCBRecorder(self.desk)

    def close(self) -> None:
        """Close the connections; a recorder that is used again opens new ones."""
        self.desk.database.close()

    def _open(self) -> Database:
        url = self.env.get(self.DATABASE_URL)
        if not url:
            raise InfrastructureFactoryError(
                f"no database: set {' or '.join(self.env.create_keys(self.DATABASE_URL))}, "
                "for example to sqlite:///qntx.db"
            )
        try:
            database = Database(url)
        except QntxError as error:
            raise InfrastructureFactoryError(str(error)) from error
        with ExitStack() as undo, library_errors():
            undo.callback(database.close)
            self._make_tables(database)
            undo.pop_all()
        return database

    def _make_tables(self, database: Database) -> None:
        if strtobool(self.env.get(self.CREATE_TABLE) or "yes"):
            database.create()
            if database.revision() is None:
                database.upgrade()
                return
        database.check()

    def _class(self, topic: str, default: type[R]) -> type[R]:
        named = self.env.get(topic)
        found: type[R] = resolve_topic(named) if named else default
        if not issubclass(found, default):
            raise InfrastructureFactoryError(f"{topic}: {named} is no {default.__name__}")
        return found
