"""Many writers, one order: nothing lost, nothing twice, nothing new behind a reader's back."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import pairwise

import pytest

from qntx_es import Attestation, Recorded
from qntx_es.database import Database
from qntx_es.log import Log
from qntx_es.sequencer import Sequencer

SIZES = (1, 1, 3, 1, 7, 2)
ROUNDS = 20
BOUND = 120
WRITER = """
import json, sys
from qntx_es import Attestation
from qntx_es.database import Database
from qntx_es.log import Log
from qntx_es.sequencer import Sequencer

url, name, rounds, sizes = sys.argv[1], sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[4])
database = Database(url)
sequencer = Sequencer(database)
log = Log(database, sequencer)
print("ready", flush=True)
sys.stdin.readline()
for round in range(rounds):
    many = [
        Attestation(context="seen", entity=f"{name}.{round}", actor=name, payload={"n": n})
        for n in range(sizes[round % len(sizes)])
    ]
    if round % 5 == 4:
        with database.write() as connection:
            sequencer.drop(connection, many)
        sequencer.run_pass()
        continue
    positions = [receipt.position for receipt in log.append(many)]
    assert positions == list(range(positions[0], positions[0] + len(many))), positions
    assert log.head() >= positions[-1]
"""


@pytest.fixture
def log(url: str) -> Iterator[Log]:
    """Open an empty log on each database."""
    database = Database(url)
    database.upgrade()
    yield Log(database, Sequencer(database))
    database.close()


def write(log: Log, name: str, failures: list[BaseException]) -> None:
    """Append singles and batches, and check each one's receipts."""
    try:
        for turn in range(ROUNDS):
            size = SIZES[turn % len(SIZES)]
            many = [
                Attestation(context="seen", entity=f"{name}.{turn}", actor=name, payload={"n": n})
                for n in range(size)
            ]
            positions = [receipt.position for receipt in log.append(many)]
            assert positions == list(range(positions[0], positions[0] + size))
    except BaseException as error:  # noqa: BLE001 - a thread's failure is the test's
        failures.append(error)


def follow(log: Log, wanted: int, is_anybody_writing: threading.Event) -> list[Recorded]:
    """Read behind what was read, again and again, until all is there or nobody writes."""
    seen: list[Recorded] = []
    pause = threading.Event()
    while len(seen) < wanted:
        was_writing = is_anybody_writing.is_set()
        position = seen[-1].position if seen else 0
        head = log.head()
        new = list(log.read(after=position))
        assert [one.position for one in new] == list(range(position + 1, position + 1 + len(new)))
        assert position + len(new) >= head
        seen += new
        if not new:
            if not was_writing:
                break
            pause.wait(0.002)
    return seen


def assert_whole(log: Log, seen: list[Recorded], names: list[str]) -> None:
    """Assert that each append stands together, in its order, each writer's one after another."""
    wanted = {
        name: [(f"{name}.{turn}", n) for turn in range(ROUNDS) for n in range(SIZES[turn % 6])]
        for name in names
    }
    assert {
        name: [(one.entity, one.payload["n"]) for one in seen if one.actor == name]
        for name in names
    } == wanted
    together = [(one.entity, one.payload["n"]) for one in seen]
    for before, after in pairwise(together):
        assert after[1] == 0 or after == (before[0], before[1] + 1), (before, after)
    assert seen == list(log.read())
    assert [one.position for one in seen] == list(range(1, len(seen) + 1))
    times = [one.recorded_at for one in seen]
    assert times == sorted(times)


@pytest.mark.gap
def test_threads_share_one_dense_order(log: Log) -> None:
    """Six threads that append singles and batches leave one order, and a reader sees all of it."""
    names = [f"thread{n}" for n in range(6)]
    total = len(names) * sum(SIZES[turn % 6] for turn in range(ROUNDS))
    failures: list[BaseException] = []
    is_anybody_writing = threading.Event()
    is_anybody_writing.set()
    seen: list[Recorded] = []
    reader = threading.Thread(target=lambda: seen.extend(follow(log, total, is_anybody_writing)))
    writers = [threading.Thread(target=write, args=(log, name, failures)) for name in names]

    reader.start()
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(BOUND)
    is_anybody_writing.clear()
    reader.join(BOUND)

    assert failures == []
    assert_whole(log, seen, names)


@pytest.mark.gap
def test_processes_share_one_dense_order(log: Log, url: str) -> None:
    """Three processes, some of their statements through the inbox, leave one order, too."""
    names = [f"process{n}" for n in range(3)]
    total = len(names) * sum(SIZES[turn % 6] for turn in range(ROUNDS))
    command = [sys.executable, "-c", WRITER, url]
    processes = [
        subprocess.Popen(
            [*command, name, str(ROUNDS), json.dumps(SIZES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in names
    ]
    is_anybody_writing = threading.Event()
    is_anybody_writing.set()
    seen: list[Recorded] = []
    reader = threading.Thread(target=lambda: seen.extend(follow(log, total, is_anybody_writing)))
    reader.start()
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        troubles = [process.communicate(timeout=BOUND)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
        is_anybody_writing.clear()
        reader.join(BOUND)

    assert troubles == ["", "", ""]
    assert_whole(log, seen, names)
