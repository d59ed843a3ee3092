"""What surrounds a handler and must not show: clock, zone, environment, chance, order of keys.

All of it is held still while a handler runs, so that a replay differs from another one by nothing
but what was changed on purpose, and the cause of a difference is known by construction. Outside a
handler nothing is touched: the framework, the test and its runner keep their own clock.

On PostgreSQL the log's times and SQL's own clock are the server's, and are not moved.
"""

import datetime as dt
import json
import locale
import os
import random
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, date, datetime, tzinfo
from functools import cache, partial
from random import Random
from typing import Any, Literal, Self, TypeAlias

from qntx_es.attestation import Json, Recorded
from qntx_es.testing.memory import Place

Changed: TypeAlias = Literal["clock", "zone", "environment", "random", "uuid", "keys"]
KINDS: tuple[Changed, ...] = ("clock", "zone", "environment", "random", "uuid", "keys")
SECOND = 1_000_000_000
TICK = 1_000_000
# Apart in every part, from the year to the microsecond, the day of the week and the half of a day.
NOW = int(datetime(2026, 6, 1, 12, 0, tzinfo=UTC).timestamp()) * SECOND
ANOTHER_NOW = int(datetime(2031, 11, 23, 4, 56, 7, tzinfo=UTC).timestamp()) * SECOND + 89_012_345
ZONE, ANOTHER_ZONE = "UTC0", "<+14>-14"
LOCALES = ("de_DE.UTF-8", "tr_TR.UTF-8", "fr_FR.UTF-8", "en_US.UTF-8", "C.UTF-8", "C")
# Read by Python itself, whatever a handler does.
LEFT_ALONE = ("PATH", "PYTHON", "TZ", "LC_", "LANG")


class Circumstances:
    """What handlers meet of the world, with some of `KINDS` changed; `restart` begins it anew."""

    def __init__(
        self, changed: frozenset[str] = frozenset(), places: tuple[Place, ...] = ()
    ) -> None:
        self.changed = changed
        self._places = places
        self._now = 0
        self.chance = Random()  # noqa: S311 - drawn to be repeated
        self._entropy = Random()  # noqa: S311 - drawn to be repeated
        self.restart()

    def restart(self) -> None:
        """Begin anew: the clock at its first moment, chance at its seed."""
        self._now = ANOTHER_NOW if "clock" in self.changed else NOW
        self.chance.seed(1 if "random" in self.changed else 0)
        self._entropy.seed(1 if "uuid" in self.changed else 0)

    def tick(self) -> int:
        """Return the time, in nanoseconds since 1970: a little later each time it is asked."""
        self._now += TICK
        return self._now

    def entropy(self, size: int) -> bytes:
        """Return what the system would draw."""
        return self._entropy.randbytes(size)

    @contextmanager
    def around(self) -> Iterator[None]:
        """Be in the zone and the locale until the block ends: a process has one of each."""
        before, spoken = os.environ.get("TZ"), locale.setlocale(locale.LC_ALL)
        is_elsewhere = "zone" in self.changed
        os.environ["TZ"] = ANOTHER_ZONE if is_elsewhere else ZONE
        time.tzset()
        try:
            if is_elsewhere:
                _speak_otherwise(spoken)
            yield
        finally:
            locale.setlocale(locale.LC_ALL, spoken)
            if before is None:
                del os.environ["TZ"]
            else:
                os.environ["TZ"] = before
            time.tzset()

    @contextmanager
    def within(self) -> Iterator[None]:
        """Let the code in this block see these circumstances, and no other."""
        global _current  # noqa: PLW0603 - a process has one clock, and one who holds it
        outside = random.getstate()
        before, _current = _current, self
        with ExitStack() as undo:
            undo.callback(random.setstate, outside)
            random.setstate(self.chance.getstate())
            for module, name, stand_in in (*_STAND_INS, (uuid, "_node", len(self.changed & _NODE))):
                undo.callback(setattr, module, name, getattr(module, name))
                setattr(module, name, stand_in)
            for place in self._places:
                found = place.get()
                place.put(_BY_REAL.get(id(found), found))
                undo.callback(place.put, found)
            try:
                yield
            finally:
                self.chance.setstate(random.getstate())
                _current = before

    def seen(self, recorded: Recorded[Any]) -> Recorded[Any]:
        """Return the attestation as a handler sees it: with its keys in another order, if asked."""
        if "keys" not in self.changed:
            return recorded
        decode = recorded._decode  # noqa: SLF001 - the text stays, only its reading changes
        return Recorded(recorded.row, lambda text: decode(_turned(text)))


def stand_in_for_sql(connection: sqlite3.Connection) -> None:
    """Let SQLite's own clock and chance be those of the circumstances, in every statement."""

    def told(name: str, *parts: Any) -> Any:  # noqa: ANN401 - as SQLite has it
        if _current is not None:
            now = datetime.fromtimestamp(_time(), UTC).strftime("%Y-%m-%d %H:%M:%S.%f")
            is_bare = len(parts) <= (name == "strftime")
            parts = (*parts, "now") if is_bare else parts
            parts = tuple(now if one == "now" else one for one in parts)
        marks = ", ".join("?" * len(parts))
        return _aside().execute(f"SELECT {name}({marks})", parts).fetchone()[0]

    for name in ("date", "time", "datetime", "julianday", "strftime"):
        connection.create_function(name, -1, partial(told, name))
    for word in ("date", "time", "timestamp"):
        called = word.replace("timestamp", "datetime")
        connection.create_function(f"current_{word}", 0, partial(told, called, "now"))
    connection.create_function("random", 0, _chance)


@cache
def _aside() -> sqlite3.Connection:
    """Return a SQLite that has its own functions still."""
    return sqlite3.connect(":memory:", check_same_thread=False)


def _chance() -> int:
    source = random if _current is None else _current.chance
    return source.getrandbits(64) - (1 << 63)


def handed_to(payload: Json) -> Json:
    """Return a payload with the keys of every object in the opposite order."""
    turned = json.loads(json.dumps(payload), object_pairs_hook=lambda pairs: dict(reversed(pairs)))
    return dict(turned)


def _turned(text: str) -> str:
    return json.dumps(handed_to(json.loads(text)), ensure_ascii=False)


def _speak_otherwise(spoken: str) -> None:
    for another in LOCALES:
        if another in spoken:
            continue
        with suppress(locale.Error):
            locale.setlocale(locale.LC_ALL, another)
            return


# Stand-ins. Where no handler runs they are what they stand in for: a module imported meanwhile may
# keep one.

_current: Circumstances | None = None
_real_time_ns, _real_urandom, _real_localtime = time.time_ns, os.urandom, time.localtime


def _time_ns() -> int:
    return _real_time_ns() if _current is None else _current.tick()


def _time() -> float:
    return _time_ns() / SECOND


def _urandom(size: int, /) -> bytes:
    return _real_urandom(size) if _current is None else _current.entropy(size)


def _of_now(
    function: Callable[..., Any], at: int = 0, moment: Callable[[], Any] = _time
) -> Callable[..., Any]:
    """Return a function of `time` that is given the moment where it would take its own."""

    def told(*given: Any) -> Any:  # noqa: ANN401 - as the function has it
        is_now = len(given) <= at or given[at] is None
        return function(*given[:at], moment()) if is_now else function(*given)

    return told


def _parts() -> time.struct_time:
    return _real_localtime(_time())


class _Standing(type):
    """The type of a class that stands in for another one: its instances are the other's."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, cls.__mro__[1])

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, cls.__mro__[1])

    def __call__(cls, *parts: Any, **named: Any) -> Any:  # noqa: ANN401 - the other's own
        return cls.__mro__[1](*parts, **named)


class _Datetime(datetime, metaclass=_Standing):
    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Self:
        seconds, rest = divmod(_time_ns(), SECOND)
        told: Any = datetime.fromtimestamp(seconds, tz)
        return told.replace(microsecond=rest // 1000)  # type: ignore[no-any-return]  # the real one

    @classmethod
    def today(cls) -> Self:
        return cls.now()

    @classmethod
    def utcnow(cls) -> Self:
        return cls.now(UTC).replace(tzinfo=None)


class _Date(date, metaclass=_Standing):
    @classmethod
    def today(cls) -> Self:
        told: Any = date.fromtimestamp(_time())  # noqa: DTZ012 - the local day is what is asked
        return told  # type: ignore[no-any-return]  # the real one


class _Environment(MutableMapping[str, str]):
    """The environment, in which every variable that is asked for says something else."""

    def __init__(self, real: MutableMapping[str, str]) -> None:
        self._real = real

    def __getitem__(self, name: str) -> str:
        if _current is None or "environment" not in _current.changed:
            return self._real[name]
        if name.startswith(LEFT_ALONE):
            return self._real[name]
        return f"{self._real.get(name, '')}~"

    def __setitem__(self, name: str, value: str) -> None:
        self._real[name] = value

    def __delitem__(self, name: str) -> None:
        del self._real[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._real)

    def __len__(self) -> int:
        return len(self._real)

    def copy(self) -> dict[str, str]:
        return dict(self)


_OF_TIME: Mapping[str, Callable[..., Any]] = {
    "time": _time,
    "time_ns": _time_ns,
    "monotonic": _time,
    "monotonic_ns": _time_ns,
    "perf_counter": _time,
    "perf_counter_ns": _time_ns,
    "localtime": _of_now(time.localtime),
    "gmtime": _of_now(time.gmtime),
    "ctime": _of_now(time.ctime),
    "asctime": _of_now(time.asctime, 0, _parts),
    "strftime": _of_now(time.strftime, 1, _parts),
}
# What uuid1 takes for the machine's number.
_NODE = frozenset(("uuid",))
_ENVIRONMENT = _Environment(os.environ)
_STAND_INS: tuple[tuple[Any, str, Any], ...] = (
    *((time, name, stand_in) for name, stand_in in _OF_TIME.items()),
    (dt, "datetime", _Datetime),
    (dt, "date", _Date),
    (os, "environ", _ENVIRONMENT),
    (os, "urandom", _urandom),
    (random, "_urandom", _urandom),  # what SystemRandom, and so `secrets`, has taken of os
    (uuid, "_generate_time_safe", None),  # uuid1 asks the clock then, and not a library
    (uuid, "_last_timestamp", None),
)
_BY_REAL = {
    id(getattr(module, name)): stand_in
    for module, name, stand_in in _STAND_INS
    if stand_in is not None and not name.startswith("_")
}


def stands_for_another(value: object) -> bool:
    """Tell whether something else stands here while a handler runs: a clock, the environment."""
    return id(value) in _BY_REAL


__all__ = ["KINDS", "Circumstances", "handed_to", "stands_for_another"]
