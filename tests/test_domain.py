"""A domain is checked as a whole before it runs, and all that is wrong is said at once."""

# ruff: noqa: ARG001 - a handler has its two arguments, whether it looks at them or not

from collections.abc import AsyncIterator, Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from pydantic import BaseModel
from sqlalchemy import Column, ForeignKey, Integer, Numeric, String

from qntx_es import (
    Attestation,
    Domain,
    DomainRefused,
    ForeignActor,
    ForeignContext,
    Host,
    InvalidId,
    Job,
    Payload,
    ReadRows,
    Recorded,
    Rows,
    ServiceRegistry,
)


class Seen(Payload, context="seen"):
    """Something was seen."""

    n: int = 0


class Heard(Payload, context="heard"):
    """Something was heard."""


class Nowhere(Payload):
    """A payload that nobody bound to a context."""


def problems_of(domain: Domain) -> str:
    """Return why a host refuses this domain, as one text; empty where it does not."""
    try:
        Host("sqlite://", [domain])
    except DomainRefused as refused:
        return "\n".join(refused.problems)
    return ""


def test_a_sound_domain_has_no_problems() -> None:
    """Everything that the documentation shows is accepted."""
    domain = Domain("code", emits=("heard",), actors=("code@system",))
    things = domain.table(
        "things",
        Column("entity", String, primary_key=True),
        Column("n", Integer, nullable=False, default=0),
    )

    @domain.project(Seen)
    def bare(seen: Recorded, rows: Rows) -> None:
        rows.put(things, entity=seen.entity)

    @domain.project(Seen)
    def full(seen: Recorded[Seen], rows: Rows, more: int = 0) -> None: ...

    @domain.project(Seen)
    def unannotated(seen, rows):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        ...

    @domain.project(Seen)
    def anything(seen: Recorded[Any], rows: Rows) -> None: ...

    @domain.derive(Seen)
    def follow(seen: Recorded[Seen], rows: ReadRows) -> Iterator[Attestation]:
        yield domain.attest(Heard(), entity=seen.entity)

    @domain.every(timedelta(hours=1))
    def tick(due: datetime, rows: ReadRows) -> Iterator[Attestation]:
        yield from ()

    @domain.job()
    def work(job: Job, services: ServiceRegistry) -> None: ...

    @domain.job()
    def work_on_anything(job: Job[Any], services: ServiceRegistry) -> None: ...

    @domain.job()
    def work_on_fields(job: Job[dict[str, Any]], services: ServiceRegistry) -> None: ...

    assert problems_of(domain) == ""


def test_everything_wrong_is_said_at_once() -> None:  # noqa: C901 - as many as there are rules
    """One refusal names every problem, each with the handler, table or column it is about."""
    domain = Domain("code", emits=("seen", "pulse.job_started"), inline=True)
    domain.table("keyless", Column("n", Integer))
    domain.table("prices", Column("entity", String, primary_key=True), Column("price", Numeric))
    domain.table("links", Column("to", String, ForeignKey("code_prices.entity"), primary_key=True))
    domain.table("BadName", Column("entity", String, primary_key=True), Column("Bad", Integer))
    domain.table(
        "clocks",
        Column("entity", String, primary_key=True),
        Column("at", String, default=lambda: "now"),
        Column("made", Integer, server_default="1"),
        Column("next", Integer, onupdate=1),
        Column("twice", Integer, sa.Computed("made * 2")),
        Column("id", Integer, sa.Identity()),
    )

    @domain.project(Heard)  # type: ignore[arg-type]
    def mismatched(seen: Recorded[Seen], rows: Rows) -> None: ...

    @domain.project(Nowhere)
    def lost(seen: Recorded[Nowhere], rows: Rows) -> None: ...

    @domain.project(BaseModel)  # type: ignore[type-var]
    def foreign(seen: Recorded, rows: Rows) -> None: ...

    @domain.project(Seen)  # type: ignore[arg-type]
    def one_argument(seen: Recorded[Seen]) -> None: ...

    @domain.project(Seen)  # type: ignore[arg-type]
    def three(seen: Recorded[Seen], rows: Rows, clock: int) -> None: ...

    @domain.project(Seen)  # type: ignore[arg-type]
    async def waiting(seen: Recorded[Seen], rows: Rows) -> None: ...

    @domain.project(Seen, name="doubled")
    def doubled(seen: Recorded[Seen], rows: Rows) -> None: ...

    @domain.derive(Seen, name="doubled")
    def doubled_too(seen: Recorded[Seen], rows: ReadRows) -> Iterator[Attestation]:
        yield from ()

    @domain.project(Seen)  # type: ignore[arg-type]
    def not_recorded(seen: Seen, rows: Rows) -> None: ...

    @domain.every(timedelta(milliseconds=1))
    def too_often(due: datetime, rows: ReadRows) -> Iterator[Attestation]:
        yield from ()

    @domain.job()
    def modelled(job: Job[int], services: ServiceRegistry) -> None: ...

    found = problems_of(domain)

    for wanted in (
        "pulse.job_started", "code_keyless", "code_prices.price", "code_links", "code_BadName",
        "code_BadName.Bad", "code_clocks.at", "code_clocks.made", "code_clocks.next",
        "code_clocks.twice", "code_clocks.id", "`mismatched`", "`lost`", "`foreign`",
        "`one_argument`", "`three`", "`waiting`", "`doubled`", "`not_recorded`", "`too_often`",
        "`modelled`", "inline",
    ):  # fmt: skip
        assert wanted in found, wanted


@pytest.mark.parametrize(
    "name",
    [
        "", "c", "Code", "1code", "co-de", "co_de", "code ", "códe", "x" * 25, "qntx", "pulse",
        "test", "code\n", "sqlite", "pg",
    ],
)  # fmt: skip
def test_a_name_that_cannot_be_a_domains_is_refused(name: str) -> None:
    """A domain's name is a prefix of tables on both databases, and some are taken."""
    assert problems_of(Domain(name))


@pytest.mark.parametrize("name", ["co", "x" * 24, "code2"])
def test_a_name_at_the_edge_is_accepted(name: str) -> None:
    """Two to twenty-four small letters and digits are a name."""
    assert problems_of(Domain(name)) == ""


def test_two_domains_of_one_name_are_refused() -> None:
    """A name stands for one domain in a host."""
    with pytest.raises(DomainRefused, match="another domain"):
        Host("sqlite://", [Domain("code"), Domain("code")])


@pytest.mark.parametrize("actor", ["", "a\nb", "x" * 513])
def test_a_bad_actor_is_one_problem_among_others(actor: str) -> None:
    """An actor that is no name is named together with whatever else is wrong."""
    domain = Domain("code", actors=(actor,))
    domain.table("keyless", Column("n", Integer))

    found = problems_of(domain)

    assert "keyless" in found
    assert "actor" in found


def test_a_single_text_is_one_name() -> None:
    """`emits="seen"` means one context and never its letters."""
    domain = Domain("code", emits="seen", actors="code@system")

    said = domain.attest(Seen(), entity="a")

    assert said.actor == "code@system"
    assert not domain.may_emit("s")


# Handlers that would do nothing, or not what they say.


def test_a_project_handler_that_yields_is_refused() -> None:
    """A generator's body would never run, and its rows never be written."""
    domain = Domain("code")

    @domain.project(Seen)  # type: ignore[arg-type]
    def silent(seen: Recorded[Seen], rows: Rows) -> Iterator[None]:
        yield

    assert "`silent`" in problems_of(domain)


def test_a_job_handler_that_yields_is_refused() -> None:
    """A generator's body would never run, and the job would succeed all the same."""
    domain = Domain("code")

    @domain.job()
    def silent(job: Job, services: ServiceRegistry) -> Iterator[None]:
        yield

    assert "`silent`" in problems_of(domain)


def test_an_async_generator_is_refused_like_an_async_function() -> None:
    """What has to be awaited is not run here, whether it returns or yields."""
    domain = Domain("code")

    @domain.derive(Seen)  # type: ignore[arg-type]
    async def late(seen: Recorded[Seen], rows: ReadRows) -> AsyncIterator[Attestation]:
        yield domain.attest(Seen(), entity=seen.entity)

    assert "`late`" in problems_of(domain)


def test_an_annotation_that_cannot_be_read_is_a_problem_and_no_crash() -> None:
    """Whatever is wrong with an annotation is named with its handler."""
    domain = Domain("code")
    for number, annotation in enumerate(["Missing", "Seen.missing", "1 +", "Recorded[1:2:3:]"]):

        def odd(seen: object, rows: object) -> None: ...

        odd.__name__ = f"odd{number}"
        odd.__annotations__ = {"seen": annotation}
        domain.project(Seen)(odd)

    found = problems_of(domain)

    for number in range(4):
        assert f"`odd{number}`" in found


@pytest.mark.parametrize("payload", ["seen", None, 7, Seen(), int], ids=repr)
def test_what_is_no_payload_class_is_a_problem_and_no_crash(payload: Any) -> None:  # noqa: ANN401
    """Registering for something else entirely is named like any other mistake."""
    domain = Domain("code")

    @domain.project(payload)
    def add(seen: Recorded[Seen], rows: Rows) -> None: ...

    assert "`add`" in problems_of(domain)


def test_a_callable_object_can_be_a_handler() -> None:
    """A handler without a name of its own is given one, or refused by name."""

    class Adding:
        """A callable that is no function."""

        def __call__(self, seen: Recorded[Seen], rows: Rows) -> None: ...

    domain = Domain("code")
    domain.project(Seen, name="adding")(Adding())

    assert [one.name for one in domain.projects] == ["adding"]


@pytest.mark.parametrize("since", ["", "now", "Beginning"])
def test_an_unknown_since_is_a_problem(since: str) -> None:
    """A derive handler speaks from now on, or since the beginning."""
    domain = Domain("code")

    @domain.derive(Seen, since=since)
    def follow(seen: Recorded[Seen], rows: ReadRows) -> Iterator[Attestation]:
        yield from ()

    assert "`follow`" in problems_of(domain)


# Tables.


def key() -> Column[str]:
    """Return the usual key."""
    return Column("entity", String, primary_key=True)


@pytest.mark.parametrize(
    "name",
    ["Files", "fi-les", "files ", "x" * 60, "files__g3", "files;drop"],
)
def test_a_table_name_that_cannot_be_kept_is_refused(name: str) -> None:
    """Too long with its prefix, odd, or looking like a generation of another: refused."""
    domain = Domain("code")
    domain.table(name, key())

    assert problems_of(domain)


@pytest.mark.parametrize("name", ["Size", "1size", "si-ze", "x" * 64, "size;drop", "größe"])
def test_a_column_name_that_cannot_be_kept_is_refused(name: str) -> None:
    """Columns are [a-z][a-z0-9_]* and fit in PostgreSQL's 63 bytes."""
    domain = Domain("code")
    domain.table("files", key(), Column(name, Integer))

    assert problems_of(domain)


def test_a_default_that_its_column_refuses_is_a_problem() -> None:
    """A default is a value like any other, and is looked at when the domain is taken up."""
    domain = Domain("code")
    domain.table("files", key(), Column("size", Integer, default="none"))

    assert "code_files.size" in problems_of(domain)


def test_an_index_name_too_long_for_a_generation_is_a_problem() -> None:
    """What PostgreSQL would cut, or SQLAlchemy refuse in the middle of a rebuild, is said first."""
    domain = Domain("code")
    domain.table("files", key(), Column("size", Integer), sa.Index("x" * 62, "size"))

    assert problems_of(domain)


def test_two_tables_of_one_name_are_a_problem() -> None:
    """A table declared twice is named like any other mistake."""
    domain = Domain("code")
    domain.table("files", key())
    try:
        domain.table("files", key(), Column("size", Integer))
    except DomainRefused:
        return
    assert "code_files" in problems_of(domain)


# What a domain may say.


def test_a_domain_attests_in_its_contexts_only() -> None:
    """Globs of `emits` decide, case and all; reserved names are never matched by them."""
    domain = Domain("code", emits=("se*", "repository_?"), actors=("code@system", "git@user"))

    assert domain.attest(Seen(n=3), entity="a").text == '{"n":3}'
    for context, is_allowed in {
        "seen": True, "se": True, "Seen": False, "repository_1": True, "repository_12": False,
        "heard": False, "pulse.job_requested": True, "pulse.job_started": False,
        "qntx.anything": False,
    }.items():  # fmt: skip
        assert domain.may_emit(context) is is_allowed, context
    with pytest.raises(ForeignContext, match=r"se\*"):
        domain.attest(Heard(), entity="a")


def test_a_glob_of_everything_reserves_what_is_reserved() -> None:
    """`*` is anything but the framework's own."""
    domain = Domain("code", emits=("*",))

    assert domain.may_emit("anything at all")
    assert not domain.may_emit("pulse.job_started")
    assert not domain.may_emit("qntx.append_refused")


def test_a_domain_speaks_as_its_actors_only() -> None:
    """The first actor is the default, `<name>@plugin` is always there, others are refused."""
    domain = Domain("code", actors=("code@system", "git@user"))

    assert domain.attest(Seen(), entity="a").actor == "code@system"
    assert domain.attest(Seen(), entity="a", actor="git@user").actor == "git@user"
    assert domain.attest(Seen(), entity="a", actor="code@plugin").actor == "code@plugin"
    assert Domain("code").attest(Seen(), entity="a").actor == "code@plugin"
    with pytest.raises(ForeignActor, match="did you mean `git@user`"):
        domain.attest(Seen(), entity="a", actor="git@usr")


def test_an_attestation_of_a_domain_keeps_what_it_was_given() -> None:
    """Id, cause, correlation and schema version are carried over."""

    class Second(Payload, context="seen", schema_version=2):
        """A payload of the second version."""

    said = Domain("code").attest(Second(), entity="a", id="x", caused_by="y", correlation_id="z")

    assert (said.id, said.caused_by, said.correlation_id, said.schema_version) == ("x", "y", "z", 2)
    with pytest.raises(InvalidId):
        Domain("code").attest(Second(), entity="")


def test_registering_gives_the_function_back() -> None:
    """A decorated function is still itself, to be called by a test."""
    domain = Domain("code")

    def project(seen: Recorded[Seen], rows: Rows) -> None: ...
    def derive(seen: Recorded[Seen], rows: ReadRows) -> Iterator[Attestation]:
        yield from ()

    assert domain.project(Seen)(project) is project
    assert domain.derive(Seen)(derive) is derive
    called: list[object] = []

    def work(job: Job, services: ServiceRegistry) -> None:
        called.append(job)

    handler: Callable[..., object] = domain.job()(work)
    handler("job", "services")
    assert called == ["job"]
