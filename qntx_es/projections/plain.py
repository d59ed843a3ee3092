"""Which payloads a database can hold against their class, and by what.

What pydantic does for a class is written in its core schema. A class is *plain* if all of that is
known here: integers, floats, texts and truth values, in models, with bounds of integers, null and
constant defaults. Anything else, be it one validator, and the class is for Python to read.

A plain class is stricter than pydantic, which takes "5" and 5.0 for an int: what is not plainly of
its kind is not refused by it, but left to Python as well.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel

Kind: TypeAlias = Literal["int", "float", "str", "bool", "object"]
Core: TypeAlias = Mapping[str, Any]

# A schema that says more than this says what is not known here.
KNOWN: Mapping[str, frozenset[str]] = {
    "int": frozenset(("type", "ge", "le")),
    "float": frozenset(("type",)),
    "str": frozenset(("type",)),
    "bool": frozenset(("type",)),
    "nullable": frozenset(("type", "schema")),
    "default": frozenset(("type", "schema", "default")),
    "definition-ref": frozenset(("type", "schema_ref")),
    "model": frozenset(
        ("type", "cls", "config", "custom_init", "metadata", "ref", "root_model", "schema")
    ),
    "model-fields": frozenset(("type", "computed_fields", "fields", "model_name")),
    "model-field": frozenset(("type", "metadata", "schema")),
}
# What both databases hold as an integer.
BOUND_MAX = (1 << 63) - 1
CONFIG = frozenset(("title", "extra_fields_behavior", "ser_json_inf_nan"))


@dataclass(frozen=True, slots=True)
class Plain:
    """What lies at one place of a plain payload; `fields` are an object's, by key."""

    kind: Kind
    is_nullable: bool = False
    is_required: bool = True
    default: int | float | str | bool | None = None
    least: int | None = None
    most: int | None = None
    fields: Mapping[str, "Plain"] = field(default_factory=dict)


def plain(payload: type[BaseModel]) -> Plain | None:
    """Return what payloads of a class are, or None if the class is not plain."""
    core = _core(payload)
    refs: Mapping[str, Core] = {}
    if core["type"] == "definitions":
        refs = {one["ref"]: one for one in core["definitions"]}
        core = core["schema"]
    return _plain(core, refs)


def _core(payload: type[BaseModel]) -> Core:
    return payload.__pydantic_core_schema__


def _plain(core: Core, refs: Mapping[str, Core]) -> Plain | None:
    kind = core["type"]
    if kind not in KNOWN or not KNOWN[kind].issuperset(core):
        return None
    if kind == "definition-ref":
        # Without the reference it came by: a model inside itself has no end.
        others = {ref: one for ref, one in refs.items() if ref != core["schema_ref"]}
        return _plain(refs[core["schema_ref"]], others) if core["schema_ref"] in refs else None
    if kind == "model":
        return _object(core, refs)
    if kind in ("nullable", "default"):
        return _or_nothing(_plain(core["schema"], refs), core)
    return _scalar(core)


def _scalar(core: Core) -> Plain | None:
    bounds = [core.get("ge"), core.get("le")]
    if any(bound is not None and abs(bound) > BOUND_MAX for bound in bounds):
        return None
    return Plain(core["type"], least=bounds[0], most=bounds[1])


def _or_nothing(inside: Plain | None, core: Core) -> Plain | None:
    if inside is None or core["type"] == "nullable":
        return inside and replace(inside, is_nullable=True)
    default = core["default"]
    if default is None and inside.is_nullable:
        return replace(inside, is_required=False)
    # Nobody holds a default against its field: True may be the default of an integer.
    if type(default).__name__ == inside.kind:
        return replace(inside, is_required=False, default=default)
    return None


def _object(core: Core, refs: Mapping[str, Core]) -> Plain | None:
    fields = core["schema"]
    config = core.get("config", {})
    is_known = (
        not (core.get("custom_init") or core.get("root_model"))
        and CONFIG.issuperset(config)
        and config.get("extra_fields_behavior", "ignore") == "ignore"
        and fields["type"] == "model-fields"
        and KNOWN["model-fields"].issuperset(fields)
    )
    if not is_known:
        return None
    found: dict[str, Plain] = {}
    for name, one in fields["fields"].items():
        is_field = name.isidentifier() and KNOWN["model-field"].issuperset(one)
        inside = _plain(one["schema"], refs) if is_field else None
        if inside is None:
            return None
        found[name] = inside
    return Plain("object", fields=found)
