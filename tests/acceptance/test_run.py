"""`qntx-es run`: everything runs until told to stop, and then stops well."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen
from typing import TypeAlias

import pytest

from qntx_es import Attestation, Host

Started: TypeAlias = Callable[..., Popen[str]]
Opened: TypeAlias = Callable[..., Host]


def place(host: Host, entity: str) -> int:
    """State an order, and return its position."""
    payload = {"total": 1}
    said = Attestation(context="order_placed", entity=entity, actor="ann", payload=payload)
    return host.append(said).position


def first_line(process: Popen[str]) -> str:
    """Wait until a process has said something."""
    assert process.stdout is not None
    return process.stdout.readline()


@pytest.mark.crash_at_every_call
def test_two_run_until_told_to_stop(started: Started, opened: Opened, url: str) -> None:
    """What others append is projected; SIGTERM ends it with 0, Ctrl-C with 130, each in words."""
    host = opened(url)
    flags = ("--database", url, "--domains", "shop")
    terminated, interrupted = started("run", *flags), started("run", *flags, "--json")
    line, record = first_line(terminated), json.loads(first_line(interrupted))

    host.wait_for(place(host, "a"), "shop", timeout=30)
    terminated.send_signal(signal.SIGTERM)
    interrupted.send_signal(signal.SIGINT)
    ended, complaint = terminated.communicate(timeout=30)
    ended_record, other_complaint = interrupted.communicate(timeout=30)

    assert (terminated.returncode, interrupted.returncode) == (0, 130)
    assert (complaint, other_complaint) == ("", "")
    assert line.startswith("running on ")
    assert "pulse 1, shop 1" in line
    assert record.items() >= {"state": "running", "domains": {"pulse": 1, "shop": 1}}.items()
    assert ended.startswith("stopped by SIGTERM: pulse at ")
    assert len(ended.splitlines()) == 1
    last = json.loads(ended_record)
    assert (last["state"], last["signal"]) == ("stopped", "SIGINT")
    assert set(last["positions"]) == {"pulse", "shop"}


def test_a_job_that_does_not_end_is_cut_off(
    started: Started, opened: Opened, sqlite_url: str
) -> None:
    """A job that goes on for ever keeps nobody from stopping: past the drain, it is left alone."""
    host = opened(sqlite_url)
    flags = ("--database", sqlite_url, "--domains", "shop", "--drain-timeout", "0.1")
    process = started("run", *flags)
    first_line(process)
    place(host, "far")
    assert process.stderr is not None
    while "waiting" not in process.stderr.readline():
        assert process.poll() is None

    process.send_signal(signal.SIGTERM)
    _, complaint = process.communicate(timeout=30)

    assert process.returncode == 0
    assert "ended at once: what was in hand is done again by the next run" in complaint


def test_workers_share_what_may_be_cut(
    started: Started, opened: Opened, shop: Path, url: str
) -> None:
    """Processes hold a range each; one that is killed is started anew, and all end together."""
    shop.write_text(shop.read_text().replace("version=1,", "version=1, by_entity=True,"))
    host = opened(url)
    process = started("run", "--database", url, "--domains", "shop", "--workers", "2")
    first_line(process)

    def holders() -> set[str]:
        (found,) = [one for one in host.statuses() if one.name == "shop"]
        return {one.holder for one in found.ranges if one.holder}

    deadline = time.monotonic() + 30
    while len(holders()) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    host.wait_for(place(host, "a"), "shop", timeout=30)
    (worker,) = {int(one.split(":")[-2]) for one in holders()} - {process.pid}
    os.kill(worker, signal.SIGKILL)
    assert process.stderr is not None
    while "started anew" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)

    assert process.returncode == 0
