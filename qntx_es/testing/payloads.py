"""Payloads of a class, drawn: what its fields say of themselves is what is drawn.

Hypothesis' own `builds` looks at the annotations of a pydantic class and not at its bounds, so that
next to nothing it draws is valid. Here `model_fields` is read: the annotation, the bounds beside
it, a pattern, a multiple. Numbers without a bound stay small: their sums are to fit a column.
"""

import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin
from uuid import UUID

import annotated_types as bounds
from hypothesis import HealthCheck, Phase, given, reject, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from pydantic import AwareDatetime, BaseModel, NaiveDatetime, ValidationError
from pydantic.fields import FieldInfo
from typing_extensions import TypeAliasType

from qntx_es.attestation import problems_of
from qntx_es.errors import NoStrategy

M = TypeVar("M", bound=BaseModel)

SMALL = 1_000
ITEMS_MAX = 3
TEXT_MAX = 8
TRIES, PROBES = 5, 20
# No NUL and no lone surrogate: no log takes them.
# `st.characters` would first read all of Unicode, for seconds.
CHARACTERS = (
    st.sampled_from("0abcABC ._-/é€")
    | st.integers(0x20, 0xD7FF).map(chr)
    | st.integers(0x1_0000, 0x1_FFFF).map(chr)
)
SIMPLE = st.none() | st.booleans() | st.integers(-SMALL, SMALL) | st.text(CHARACTERS, max_size=3)
JSON_VALUES: SearchStrategy[Any] = st.recursive(
    SIMPLE,
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.text(CHARACTERS, max_size=3), inner, max_size=2)
    ),
    max_leaves=4,
)
MOMENTS = st.datetimes(datetime(1970, 1, 2), datetime(2100, 1, 1))  # noqa: DTZ001 - a zone is added
AWARE = MOMENTS.map(lambda moment: moment.replace(tzinfo=UTC))
DAYS = st.dates(date(1970, 1, 2), date(2100, 1, 1))


@dataclass
class _Bounds:
    """What the metadata of a field asks of its value."""

    least: Any = None
    most: Any = None
    is_above: bool = False
    is_below: bool = False
    multiple_of: Any = None
    shortest: int = 0
    longest: int | None = None
    pattern: str | None = None
    places: int | None = None
    digits: int | None = None
    checks: list[Callable[[Any], bool]] = field(default_factory=list)

    def take(self, said: Any) -> None:  # noqa: ANN401, C901, PLR0912 - one case a kind of metadata
        """Take one piece of metadata in."""
        match said:
            case bounds.GroupedMetadata():
                for one in said:
                    self.take(one)
            case FieldInfo():
                for one in said.metadata:
                    self.take(one)
            case bounds.Ge(least):
                self.least = least
            case bounds.Gt(least):
                self.least, self.is_above = least, True
            case bounds.Le(most):
                self.most = most
            case bounds.Lt(most):
                self.most, self.is_below = most, True
            case bounds.MultipleOf(step):
                self.multiple_of = step
            case bounds.MinLen(length):
                self.shortest = length
            case bounds.MaxLen(length):
                self.longest = length
            case bounds.Predicate(check):
                self.checks.append(check)
            case _:
                self._take_of_pydantic(said)

    def _take_of_pydantic(self, said: object) -> None:
        pattern = getattr(said, "pattern", None)
        if pattern is not None:
            self.pattern = pattern if isinstance(pattern, str) else pattern.pattern
        self.places = getattr(said, "decimal_places", None) or self.places
        self.digits = getattr(said, "max_digits", None) or self.digits


def payloads(model: type[M]) -> SearchStrategy[M]:
    """Return a strategy for valid instances of a pydantic class.

    Raises `NoStrategy` where validators of the class refuse more than half of what is drawn.
    """
    if _has_validators(model):
        _refuse_if_most_is_refused(model)
    return _instances(model)


def _instances(model: type[M]) -> SearchStrategy[M]:
    values = st.deferred(lambda: _values_of(model))

    @st.composite
    def drawn(draw: DrawFn) -> M:
        for _ in range(TRIES):
            given_ = draw(values)
            try:
                return model.model_validate(given_)
            except ValidationError:
                continue
        return reject()

    return drawn()


def _has_validators(model: type[BaseModel]) -> bool:
    said = (one for field_ in model.model_fields.values() for one in field_.metadata)
    known = model.__pydantic_decorators__
    is_decorated = known.field_validators or known.model_validators or known.root_validators
    return bool(is_decorated) or any("Validator" in type(one).__name__ for one in said)


def _refuse_if_most_is_refused(model: type[BaseModel]) -> None:
    refused: list[ValidationError] = []
    tried: list[object] = []

    # Once and apart: what a strategy draws may not depend on what it drew before.
    @settings(
        max_examples=PROBES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=[
            HealthCheck.data_too_large,
            HealthCheck.filter_too_much,
            HealthCheck.nested_given,
            HealthCheck.too_slow,
        ],
    )
    @given(_values_of(model))
    def probe(given_: dict[str, Any]) -> None:
        tried.append(given_)
        try:
            model.model_validate(given_)
        except ValidationError as error:
            refused.append(error)

    probe()
    if len(refused) * 2 > len(tried):
        raise NoStrategy(
            f"validators of {model.__name__} refuse {len(refused)} of {len(tried)} that were drawn "
            f"({problems_of(refused[-1])}). Give a strategy of your own: "
            f"attestations(…, strategies={{{model.__name__}: …}})"
        )


def _values_of(model: type[BaseModel]) -> SearchStrategy[dict[str, Any]]:
    named = {_name_of(name, one): _of_field(one) for name, one in model.model_fields.items()}
    return st.fixed_dictionaries(named)


def _name_of(name: str, said: FieldInfo) -> str:
    alias = said.validation_alias if isinstance(said.validation_alias, str) else said.alias
    return alias or name


def _of_field(said: FieldInfo) -> SearchStrategy[Any]:
    drawn = strategy_of(said.annotation, said.metadata)
    if said.is_required():
        return drawn
    return drawn if said.default_factory is not None else st.just(said.default) | drawn


def strategy_of(annotation: Any, metadata: Iterable[Any] = ()) -> SearchStrategy[Any]:  # noqa: ANN401
    """Return a strategy for what an annotation allows, within the bounds beside it."""
    annotation, said = _bare(annotation)
    asked = _Bounds()
    for one in (*said, *metadata):
        asked.take(one)
    drawn = _unchecked(annotation, asked)
    for check in asked.checks:
        drawn = drawn.filter(check)
    return drawn


def _bare(annotation: Any) -> tuple[Any, tuple[Any, ...]]:  # noqa: ANN401
    """Return an annotation without its metadata, and that."""
    said: tuple[Any, ...] = ()
    while True:
        if isinstance(annotation, TypeAliasType):
            annotation = annotation.__value__
        elif get_origin(annotation) is Annotated:
            annotation, *more = get_args(annotation)
            said = (*more, *said)
        else:
            return annotation, said


def _unchecked(annotation: Any, asked: _Bounds) -> SearchStrategy[Any]:  # noqa: ANN401
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return st.sampled_from(inner)
    if origin in (Union, types.UnionType):
        parts = sorted(inner, key=lambda one: one is not types.NoneType)  # None shrinks best
        return st.one_of([_of_part(one, asked) for one in parts])
    kind = origin or annotation
    if not isinstance(kind, type) or kind in (Any, object):
        return JSON_VALUES if kind in (Any, object) else st.from_type(annotation)
    many = _of_many(kind, inner, asked)
    return _of_one(kind, asked) if many is None else many


def _of_part(annotation: Any, asked: _Bounds) -> SearchStrategy[Any]:  # noqa: ANN401
    """Return a strategy for one part of a union: bounds beside the union are the part's as well."""
    if annotation is types.NoneType:
        return st.none()
    bare, said = _bare(annotation)
    return strategy_of(bare, said) if said else _unchecked(bare, asked)


def _of_many(kind: type, inner: tuple[Any, ...], asked: _Bounds) -> SearchStrategy[Any] | None:
    longest = max(asked.shortest, ITEMS_MAX) if asked.longest is None else asked.longest
    longest = min(longest, asked.shortest + ITEMS_MAX)
    size: dict[str, Any] = {"min_size": asked.shortest, "max_size": longest}
    if issubclass(kind, tuple):
        if not inner or inner[-1] is Ellipsis:
            return st.lists(strategy_of(inner[0] if inner else Any), **size).map(tuple)
        return st.tuples(*map(strategy_of, inner))
    if issubclass(kind, Mapping):
        key, value = inner or (str, Any)
        return st.dictionaries(strategy_of(key), strategy_of(value), **size)
    if issubclass(kind, set | frozenset):
        return st.lists(strategy_of(inner[0] if inner else str), unique=True, **size)
    if inner or issubclass(kind, list):
        return st.lists(strategy_of(inner[0] if inner else Any), **size)
    return None


def _of_one(kind: type, asked: _Bounds) -> SearchStrategy[Any]:
    if kind in _OF_PYDANTIC:
        return _OF_PYDANTIC[kind]
    for known, drawn in _OF_KINDS:
        if issubclass(kind, known):
            return drawn(kind, asked)
    return st.from_type(kind)


def _ends(asked: _Bounds) -> tuple[Any, Any]:
    least = -SMALL if asked.least is None else asked.least
    most = max(least, 0) + SMALL if asked.most is None else asked.most
    return (min(least, most - SMALL) if asked.least is None else least), most


def _integers(asked: _Bounds) -> SearchStrategy[int]:
    least, most = _ends(asked)
    low = int(least) + (1 if asked.is_above and asked.least is not None else 0)
    high = int(most) - (1 if asked.is_below and asked.most is not None else 0)
    step = asked.multiple_of
    if step is None:
        return st.integers(low, high)
    return st.integers(-(-low // step), high // step).map(lambda count: count * step)


def _floats(asked: _Bounds) -> SearchStrategy[float]:
    least, most = _ends(asked)
    if asked.multiple_of is not None:
        step = asked.multiple_of
        whole = st.integers(int(-(-least // step)), int(most // step))
        return whole.map(lambda count: count * step)
    return st.floats(
        least,
        most,
        exclude_min=asked.is_above,
        exclude_max=asked.is_below,
        allow_nan=False,
        allow_infinity=False,
    )


def _texts(asked: _Bounds) -> SearchStrategy[str]:
    longest = max(TEXT_MAX, asked.shortest) if asked.longest is None else asked.longest
    longest = min(longest, asked.shortest + TEXT_MAX)
    if asked.pattern is None:
        return st.text(CHARACTERS, min_size=asked.shortest, max_size=longest)
    shortest, most = asked.shortest, asked.longest or TEXT_MAX * TEXT_MAX
    drawn = st.from_regex(asked.pattern).filter(_is_text)
    return drawn.filter(lambda text: shortest <= len(text) <= most)


def _is_text(text: str) -> bool:
    return "\x00" not in text and not any("\ud800" <= one <= "\udfff" for one in text)


def _decimals(asked: _Bounds) -> SearchStrategy[Decimal]:
    places = 2 if asked.places is None else asked.places
    return st.decimals(*_ends(asked), allow_nan=False, allow_infinity=False, places=places)


_OF_PYDANTIC: dict[Any, SearchStrategy[Any]] = {AwareDatetime: AWARE, NaiveDatetime: MOMENTS}
# The first that fits: a bool is an int, and a datetime a date.
_OF_KINDS: tuple[tuple[type, Callable[[Any, _Bounds], SearchStrategy[Any]]], ...] = (
    (BaseModel, lambda kind, _: _instances(kind)),
    (Enum, lambda kind, _: st.sampled_from(list(kind))),
    (bool, lambda *_: st.booleans()),
    (int, lambda _, asked: _integers(asked)),
    (float, lambda _, asked: _floats(asked)),
    (str, lambda _, asked: _texts(asked)),
    (bytes, lambda *_: st.text("abc", max_size=TEXT_MAX).map(str.encode)),
    (Decimal, lambda _, asked: _decimals(asked)),
    (datetime, lambda *_: AWARE),
    (date, lambda *_: DAYS),
    (time, lambda *_: st.times()),
    (timedelta, lambda *_: st.timedeltas(timedelta(0), timedelta(days=SMALL))),
    (UUID, lambda *_: st.uuids()),
)

__all__ = ["payloads", "strategy_of"]
