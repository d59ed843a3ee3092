"""Old payloads, read as if they had been written today.

A payload class has a schema version, and the log keeps for good which version wrote a payload. An
*upcaster* lifts a payload of one version to the next; a class is read through the chain of them, on
reading and never in the log. What a chain gives is written as canonical text and read like any
other, so that a lifted payload and one written today cannot differ in anything.

The chain has no gaps: an old payload that happens to fit the new class would be misread in silence.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeAlias

from pydantic import BaseModel, ValidationError
from typing_extensions import TypeVar

from qntx_es.attestation import Json, Payload, canonical, decode_mapping, problems_of
from qntx_es.errors import InvalidPayload, SchemaVersionTooNew, UpcastFailed

P_co = TypeVar("P_co", bound=Payload, covariant=True, default=Payload)
Upcast: TypeAlias = Callable[[Any], Json | BaseModel]


@dataclass(frozen=True, slots=True)
class Upcaster:
    """A function from a payload of version `since` to the same of the next version.

    `old` is the class that the old payload is read as, and what documents it; without one the
    function is handed a mapping of JSON values, its own to change.
    """

    payload: type[Payload]
    since: int
    function: Upcast
    old: type[BaseModel] | None = None

    def lift(self, values: Json) -> Json:
        """Return the values one version later. Raises `UpcastFailed`."""
        try:
            lifted = self.function(values if self.old is None else self.old.model_validate(values))
        except ValidationError as error:
            raise self._failed(problems_of(error)) from error
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise self._failed(f"{type(error).__name__}: {error}") from error
        if isinstance(lifted, BaseModel):
            return lifted.model_dump(mode="json")
        if not isinstance(lifted, Mapping):
            raise self._failed(f"it gave a {type(lifted).__name__}, and not a mapping or a model")
        return lifted

    def _failed(self, why: str) -> UpcastFailed:
        called = getattr(self.function, "__name__", type(self.function).__name__)
        return UpcastFailed(f"`{called}` lifts no such {self.payload.context} {self.since}: {why}")


class Chain(Generic[P_co]):
    """How payloads of one class are read, whichever version wrote them."""

    def __init__(self, payload: type[P_co], upcasters: Iterable[Upcaster] = ()) -> None:
        self.payload = payload
        self.version = payload.schema_version
        self.decode: Callable[[str], P_co] = payload.__pydantic_validator__.validate_json
        self._upcasters = {one.since: one for one in upcasters}

    def decode_of(self, schema_version: int) -> Callable[[str], P_co]:
        """Return what reads the text of a payload of this version. Raises `SchemaVersionTooNew`."""
        if schema_version == self.version:
            return self.decode
        if schema_version > self.version:
            raise SchemaVersionTooNew(
                f"{self.payload.context} is of schema version {schema_version}, and this code knows"
                f" {self.version}: upgrade this host. Nothing is passed over meanwhile"
            )
        return partial(self._lifted, schema_version)

    def text_of(self, schema_version: int, text: str) -> str:
        """Return the text that a payload of this version would have today."""
        values = decode_mapping(text)
        for since in range(schema_version, self.version):
            values = self._upcasters[since].lift(values)
        return canonical(values)

    def lacks(self, schema_version: int) -> bool:
        """Tell whether nothing lifts payloads of this version up to the present one."""
        return any(gap >= schema_version for gap in self.gaps())

    def gaps(self) -> list[int]:
        """Return the versions that nothing lifts to the next."""
        return [one for one in range(1, self.version) if one not in self._upcasters]

    def schemas(self) -> dict[int, Json | None]:
        """Return the JSON Schema of each version; None where an old one has no class."""
        schemas = {one: self._old_schema(one) for one in range(1, self.version)}
        return {**schemas, self.version: self.payload.model_json_schema()}

    def _lifted(self, schema_version: int, text: str) -> P_co:
        lifted = self.text_of(schema_version, text)
        try:
            return self.decode(lifted)
        except ValidationError as error:
            raise InvalidPayload(
                f"{self.payload.context}, lifted from version {schema_version}: "
                f"{problems_of(error)}"
            ) from error

    def _old_schema(self, version: int) -> Json | None:
        upcaster = self._upcasters.get(version)
        return (
            None if upcaster is None or upcaster.old is None else upcaster.old.model_json_schema()
        )
