"""`qntx-es metrics`: what Prometheus would scrape, for a file or a look at night."""

import json
from collections.abc import Callable
from subprocess import CompletedProcess
from typing import TypeAlias

from prometheus_client.parser import text_string_to_metric_families

from qntx_es import Attestation, Host

Each: TypeAlias = Callable[..., list[CompletedProcess[str]]]


def test_the_command_prints_every_metric_once(
    each: Each, opened: Callable[..., Host], url: str
) -> None:
    """As text for Prometheus and as JSON, the same is told, without the shop's code."""
    host = opened(url)
    payload = {"total": 1}
    host.append(Attestation(context="order_placed", entity="a", actor="ann", payload=payload))
    flags = ("--database", url)

    text, as_json = each(("metrics", *flags), ("metrics", "--json", *flags))

    assert (text.returncode, as_json.returncode) == (0, 0)
    assert (text.stderr, as_json.stderr) == ("", "")
    found = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.stdout)
        for sample in family.samples
    }
    shop = (("domain", "shop"), ("version", "1"))
    assert found["qntx_up",] == 1
    assert found["qntx_log_head_position",] == 1
    assert found["qntx_projection_lag_attestations", *shop] == 1
    assert found["qntx_projection_state", shop[0], ("state", "live"), shop[1]] == 1
    told = {
        (one["name"], *sorted(one["labels"].items())): one["value"]
        for one in json.loads(as_json.stdout)
    }
    assert [*told] == [*found]
    assert told["qntx_projection_lag_attestations", *shop] == 1


def test_a_database_that_is_not_there_is_told_in_every_form(each: Each) -> None:
    """`qntx_up` is 0 on stdout, the remedy is on stderr, and the exit code is 1."""
    text, as_json = each(("metrics",), ("metrics", "--json"))

    assert (text.returncode, as_json.returncode) == (1, 1)
    assert "\nqntx_up 0.0\n" in text.stdout
    assert json.loads(as_json.stdout) == [{"name": "qntx_up", "labels": {}, "value": 0}]
    assert text.stderr.count("\n") == 1
    assert "db upgrade" in text.stderr
