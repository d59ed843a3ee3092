"""How deep Hypothesis looks: profiles that are there wherever it is, and loaded by nobody unasked.

Hypothesis calls `register` when it is imported; `--hypothesis-profile=qntx-ci` chooses, or
`settings.load_profile`. A deadline measures the machine and not the property, so there is none.
"""


def register() -> None:
    """Register `qntx-fast`, `qntx-ci` and `qntx-nightly`."""
    from hypothesis import settings  # noqa: PLC0415 - it is what imports this

    settings.register_profile("qntx-fast", deadline=None, max_examples=25)
    settings.register_profile(
        "qntx-ci", deadline=None, max_examples=100, derandomize=True, database=None
    )
    # Random also where a `CI` in the environment has made Hypothesis repeat itself by default.
    settings.register_profile(
        "qntx-nightly", deadline=None, max_examples=2_000, print_blob=True, derandomize=False
    )
