"""The example runs as a stranger would run it, and its budget holds."""

import subprocess
import sys
from contextlib import closing
from pathlib import Path

from qntx_es import Host

EXAMPLE = Path(__file__).parents[2] / "examples" / "budget.py"


def run(*arguments: str) -> list[str]:
    """Run the example and return the lines it prints."""
    command = [sys.executable, "-W", "error", str(EXAMPLE), *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    return ran.stdout.splitlines()


def test_a_budget_is_never_overspent(url: str) -> None:
    """Four approvers at once spend no more than was granted, and pay for nothing twice."""
    shown = run(url)

    with closing(Host(url)) as host:
        approved = host.ax(contexts="valuation_approved", actors="Budgets@eventsourcing")
        proposed = host.ax(contexts="valuation_proposed", actors="Valuations@eventsourcing")
    ids = {one.entity for one in proposed}
    spent = sum(one.payload["amount"] for one in approved)
    assert {one.payload["valuation"] for one in approved} < ids
    assert len({one.payload["valuation"] for one in approved}) == len(approved)
    assert 0 < spent <= 1_000
    assert len(shown) == len(ids) + 1
    assert sum(line.endswith("team:search") for line in shown) == len(approved)
    assert shown[-1].startswith(f"team:search was granted 1000 and approved {spent};")


def test_it_runs_by_itself() -> None:
    """Without an argument it makes a database of its own, and leaves none."""
    assert "approved" in run()[-1]
