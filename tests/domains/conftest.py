"""A domain's tests go with it: where `domains/<name>` is gone, its tests are not collected."""

from pathlib import Path

HERE = Path(__file__).parent
DOMAINS = HERE.parents[1] / "domains"
# What tests several domains together, and so goes with any of them.
TOGETHER = {"test_code_and_finance.py": ("code", "finance")}


def _is_here(domain: str) -> bool:
    return (DOMAINS / domain / "__init__.py").is_file()


collect_ignore = [
    *(
        folder.name
        for folder in sorted(HERE.iterdir())
        if folder.is_dir() and not _is_here(folder.name)
    ),
    *(file for file, domains in TOGETHER.items() if not all(map(_is_here, domains))),
]
