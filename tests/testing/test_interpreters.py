"""The same log under another hash seed: what a process of its own finds, and how it ends."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import pytest
from sqlalchemy import Column, Integer, String

from qntx_es import Attestation, Domain, Host, Payload, ReadRows, Recorded, Rows
from qntx_es.testing.interpreters import Interpreters, ReplayNotRun, address_of

SECONDS_MAX = 30


class Said(Payload, context="said"):
    """Some words."""

    words: list[str]


class Repeated(Payload, context="repeated"):
    """One of the words."""

    word: str


def domain_of(name: str) -> Domain:
    """Return a domain that keeps a text of each entity."""
    domain = Domain(name, actors=f"{name}@plugin")
    domain.table(
        "texts",
        Column("entity", String, primary_key=True),
        Column("text", String),
        Column("times", Integer, nullable=False, default=0),
    )
    return domain


steady, unordered, repeating = domain_of("steady"), domain_of("unordered"), domain_of("repeating")
keeping, placed, failing = domain_of("keeping"), domain_of("placed"), domain_of("failing")
drawing = domain_of("drawing")
endless, ending, reaching = domain_of("endless"), domain_of("ending"), domain_of("reaching")
kept: list[str] = []


@steady.project(Said)
def keep(said: Recorded[Said], rows: Rows) -> None:
    """Keep the words in their own order."""
    rows.put(steady.tables["steady_texts"], entity=said.entity, text=" ".join(said.payload.words))


@unordered.project(Said)
def keep_as_set(said: Recorded[Said], rows: Rows) -> None:
    """Keep the words in the order of a set."""
    words = set(said.payload.words)
    rows.put(unordered.tables["unordered_texts"], entity=said.entity, text=" ".join(words))


@repeating.derive(Said)
def repeat(said: Recorded[Said], _: ReadRows) -> Iterator[Attestation]:
    """Say the words again, in the order of a set."""
    for word in set(said.payload.words):
        yield repeating.attest(Repeated(word=word), entity=said.entity)


@keeping.project(Said)
def keep_outside(said: Recorded[Said], rows: Rows) -> None:
    """Keep in the module what belongs in a row."""
    kept.append(said.entity)
    rows.put(keeping.tables["keeping_texts"], entity=said.entity, times=len(kept))


@placed.project(Said)
def keep_place(said: Recorded[Said], rows: Rows) -> None:
    """Keep what the process is surrounded by."""
    text = f"{os.environ.get('PLACE')} {time.tzname[0]}"
    rows.put(placed.tables["placed_texts"], entity=said.entity, text=text)


@failing.project(Said)
def fail_at_nothing(said: Recorded[Said], rows: Rows) -> None:
    """Fail where there are no words."""
    rows.put(failing.tables["failing_texts"], entity=said.entity, text=said.payload.words[0])


@drawing.project(Said)
def draw(said: Recorded[Said], rows: Rows) -> None:
    """Keep what hangs on the moment, and on chance."""
    text = f"{time.time()} {random.random()} {uuid.uuid4()}"  # noqa: S311 - no secret
    rows.put(drawing.tables["drawing_texts"], entity=said.entity, text=text)


@endless.project(Said)
def never_end(_: Recorded[Said], __: Rows) -> None:
    """Wait for what never comes."""
    signal.pause()


@ending.project(Said)
def end(_: Recorded[Said], __: Rows) -> None:
    """End the process."""
    os._exit(7)


@reaching.project(Said)
def reach(said: Recorded[Said], _: Rows) -> None:
    """Read a file, and ask a server."""
    assert Path(__file__).with_suffix(".txt").exists() is False
    with Path("/dev/null").open(encoding="utf-8") as nothing, socket.socket() as asking:
        nothing.read()
        asking.connect_ex(("127.0.0.1", said.position))


def exported(*words: list[str]) -> bytes:
    """Return the export of a log in which these were said, each about another entity."""
    with Host("sqlite://") as host:
        host.upgrade()
        host.append(
            [
                Attestation(context="said", entity=f"e{n}", actor="a", payload={"words": some})
                for n, some in enumerate(words)
            ]
        )
        stream = BytesIO()
        host.export_log(stream)
    return stream.getvalue()


@pytest.fixture(scope="module")
def interpreters() -> Iterator[Interpreters]:
    """Start the interpreters of this module once."""
    with Interpreters() as started:
        yield started


MANY = ["one", "two", "three", "four", "five", "six", "seven"]


def test_a_domain_in_order_is_the_same_everywhere(interpreters: Interpreters) -> None:
    """Rows and derived attestations of a steady domain are equal under every hash seed."""
    log = exported(MANY, ["b", "a"], MANY)

    found = interpreters.replay(steady, log, is_full=True)

    assert [*found] == [0, 1, 2]
    assert found[0] == found[1] == found[2]
    assert found[0].tables["steady_texts"].rows == 3
    assert found[0].rows["steady_texts"][1] == {"entity": "'e1'", "text": "'b a'", "times": "0"}
    assert interpreters.parting(steady, log) is None


def test_the_order_of_a_set_is_found(interpreters: Interpreters) -> None:
    """Where rows hang on the order of a set, interpreters part at the first one that shows it."""
    log = exported(["one"], [], ["one"], MANY, ["two"], MANY)

    parting = interpreters.parting(unordered, log)

    assert parting is not None
    assert (parting.position, parting.tables) == (4, ("unordered_texts",))
    texts = {one.rows["unordered_texts"][3]["text"] for one in parting.replays.values()}
    assert len(texts) > 1
    assert {" ".join(sorted(text.strip("'").split())) for text in texts} == {" ".join(sorted(MANY))}


def test_the_order_of_what_is_derived_is_found(interpreters: Interpreters) -> None:
    """Where only derived attestations differ, no table is blamed, and what was said is shown."""
    parting = interpreters.parting(repeating, exported(["one"], MANY))

    assert parting is not None
    assert (parting.position, parting.tables) == (2, ())
    assert {len(one.said) for one in parting.replays.values()} == {1 + len(MANY)}
    assert len({tuple(one.said.items()) for one in parting.replays.values()}) > 1


def test_every_replay_begins_as_just_imported(interpreters: Interpreters) -> None:
    """What a module keeps is forgotten between replays, so the second gives what the first gave."""
    kept.append("of this process")
    log = exported(["one"], ["two"])

    found = [interpreters.replay(keeping, log, is_full=True) for _ in range(2)]

    assert found[0] == found[1]
    assert [one["times"] for one in found[0][0].rows["keeping_texts"]] == ["1", "2"]


def test_nothing_but_the_seed_differs(interpreters: Interpreters) -> None:
    """Clock and chance are the same for every interpreter, so they are not taken for its seed."""
    found = interpreters.replay(drawing, exported(["one"], ["two"]))

    assert found[0] == found[1] == found[2]


def test_a_replay_is_surrounded_as_asked(interpreters: Interpreters) -> None:
    """Environment and time zone hold for one replay, and the next one knows nothing of them."""
    log = exported(["one"])
    elsewhere = {"PLACE": "elsewhere", "TZ": "XYZ-3"}

    there = interpreters.replay(placed, log, environment=elsewhere, is_full=True)
    here = interpreters.replay(placed, log, is_full=True)

    assert there[0].rows["placed_texts"][0]["text"] == "'elsewhere XYZ'"
    assert here[0].rows["placed_texts"][0]["text"].startswith("'None ")


def test_a_failure_has_a_name_and_a_place(interpreters: Interpreters) -> None:
    """A handler that raises is told with its error and position, and the rows of the one before."""
    found = interpreters.replay(failing, exported(["one"], ["two"], [], ["three"]))

    assert found[0] == found[1] == found[2]
    assert found[0].tables["failing_texts"].rows == 2
    failure = found[0].failure
    assert failure is not None
    assert (failure.error, failure.position, failure.handler) == (
        "IndexError",
        3,
        "fail_at_nothing",
    )


def test_a_replay_goes_as_far_as_asked(interpreters: Interpreters) -> None:
    """A replay up to a position is the fold of the log up to there."""
    log = exported(["one"], ["two"], ["three"])

    found = [interpreters.replay(steady, log, until=n)[0].tables["steady_texts"] for n in range(4)]

    assert [one.rows for one in found] == [0, 1, 2, 3]


def test_what_a_handler_reaches_for_is_noted(interpreters: Interpreters) -> None:
    """Files and servers that a handler asks are told with its name, as a hint."""
    found = interpreters.replay(reaching, exported(["one"]))

    touches = {(one.handler, one.verb, one.target) for one in found[0].touches}
    assert touches == {("reach", "open", "/dev/null"), ("reach", "connect", "('127.0.0.1', 1)")}


def test_a_domain_that_no_module_has_is_not_run(interpreters: Interpreters) -> None:
    """A domain that another process cannot import is reported as not run, not as the same."""
    local = Domain("local")
    local.project(Said)(keep)

    with pytest.raises(ReplayNotRun, match="found in no module"):
        interpreters.replay(local, exported(["one"]))


def test_a_domain_that_others_add_to_is_not_run(interpreters: Interpreters) -> None:
    """A domain that is another one where its module is imported by itself is not run."""
    address = address_of(grown)
    grown.project(Said, name="late")(keep)

    assert address["attribute"] == "grown"
    with pytest.raises(ReplayNotRun, match="another domain"):
        interpreters.replay(grown, exported(["one"]))


grown = domain_of("grown")


@grown.project(Said)
def keep_once(said: Recorded[Said], rows: Rows) -> None:
    """Keep the words."""
    rows.put(grown.tables["grown_texts"], entity=said.entity, text=" ".join(said.payload.words))


def test_a_replay_that_ends_its_process_is_not_run(interpreters: Interpreters) -> None:
    """A handler that ends its process fails its own replay, and the interpreter goes on."""
    log = exported(["one"])

    with pytest.raises(ReplayNotRun, match="with 7"):
        interpreters.replay(ending, log)

    assert interpreters.replay(steady, log)[0].tables["steady_texts"].rows == 1


def test_an_endless_replay_is_cut_off() -> None:
    """A handler that never returns is killed in time, and told."""
    with (
        Interpreters([0], seconds_max=0.3) as hasty,
        pytest.raises(ReplayNotRun, match=r"longer than 0\.3 s"),
    ):
        hasty.replay(endless, exported(["one"]))


PARENT = """
import sys
sys.path[:0] = {path!r}
from importlib.util import module_from_spec, spec_from_file_location
spec = spec_from_file_location("kept_alive", {file!r})
module = module_from_spec(spec)
sys.modules["kept_alive"] = module
spec.loader.exec_module(module)
interpreters = module.Interpreters([0, 1])
log = module.exported(["one"])
interpreters.replay(module.steady, log)
print(*(one._process.pid for one in interpreters._running.values()), flush=True)
interpreters.replay(module.endless, log)
"""


def test_nothing_is_left_when_the_parent_is_killed() -> None:
    """Interpreters, and a replay in hand, end with the process that started them, though killed."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT.format(path=sys.path, file=__file__)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    with parent.stdout as said:
        running = [int(one) for one in said.readline().split()]
        assert len(running) == 2
        wait_until(lambda: all(map(children_of, running)))
        everyone = [*running, *(child for one in running for child in children_of(one))]
        parent.kill()
        parent.wait()

    wait_until(lambda: not any(map(is_alive, everyone)))


def test_close_leaves_no_process() -> None:
    """Closing ends every interpreter, and a later replay starts others."""
    interpreters = Interpreters([0])
    log = exported(["one"])
    interpreters.replay(steady, log)
    (before,) = (one._process.pid for one in interpreters._running.values())  # noqa: SLF001 - what is there to be gone
    interpreters.close()

    assert not is_alive(before)
    assert interpreters.replay(steady, log)[0].failure is None
    interpreters.close()


def children_of(process: int) -> list[int]:
    """Return the processes that a process has forked."""
    found = Path(f"/proc/{process}/task/{process}/children")
    return [int(one) for one in found.read_text().split()] if found.exists() else []


def is_alive(process: int) -> bool:
    """Tell whether a process is there and not a zombie."""
    status = Path(f"/proc/{process}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def wait_until(condition: Callable[[], bool]) -> None:
    """Return when the condition holds; fail if it does not in time."""
    deadline = time.monotonic() + SECONDS_MAX
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
