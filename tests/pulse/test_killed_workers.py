"""Workers that are killed: on one machine nobody waits for a lease, and nothing comes twice."""

import subprocess
import sys
from collections import Counter
from datetime import timedelta

import pytest

from qntx_es import Backoff, Domain, Host, Job, Payload, ServiceRegistry

AT_ONCE = Backoff(first=timedelta(0), spread=0)
POINTS = ("job.after_start", "job.before_advance", "job.before_outcome", "job.after_outcome")


class Said(Payload, context="said"):
    """What a job says."""

    what: str


code = Domain("code", emits=("said",))


@code.job(retries=1, backoff=AT_ONCE)
def work(job: Job, services: ServiceRegistry) -> None:
    """Say one thing that an advance commits, and one with the outcome."""
    if job.state is None:
        services.store.append(code.attest(Said(what="half"), entity=job.entity))
        job.advance("half")
    services.store.append(code.attest(Said(what="all"), entity=job.entity))


def be_killed(url: str, point: str) -> None:
    """Run what is due in a process that kills itself at a point."""
    program = (
        "import importlib.util, sys;"
        "spec = importlib.util.spec_from_file_location('killed', sys.argv[1]);"
        "it = importlib.util.module_from_spec(spec); sys.modules['killed'] = it;"
        "spec.loader.exec_module(it);"
        "from qntx_es import Host, faults;"
        "host = Host(sys.argv[2], [it.code]);"
        "plan = faults.planned({sys.argv[3]: faults.kill()});"
        "plan.__enter__(); host.catch_up(jobs=True)"
    )
    ran = subprocess.run([sys.executable, "-c", program, __file__, url, point], check=False)
    assert ran.returncode == -9


@pytest.mark.parametrize("point", POINTS)
def test_what_a_killed_worker_had_in_hand_is_done_once(url: str, point: str) -> None:
    """Another worker of the machine takes over at once, and each effect is in the log once."""
    host = Host(url, [code])
    host.upgrade()
    host.append(work.request(entity="a"))
    be_killed(url, point)

    host.catch_up(jobs=True)

    assert Counter(one.payload["what"] for one in host.ax(contexts="said")) == {"half": 1, "all": 1}
    assert len(host.ax(contexts="pulse.job_succeeded")) == 1
    assert len(host.ax(contexts="pulse.job_started")) <= 2
    lapsed = [one.payload["reason"] for one in host.ax(contexts="pulse.job_lapsed")]
    assert lapsed == ([] if point == "job.after_outcome" else ["worker_lost"])
    assert host.rebuild("pulse").is_same
    host.close()
