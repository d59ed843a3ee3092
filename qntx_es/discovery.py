"""Finds domains by name: the built-in ones, and those that other packages install.

A name is all that configuration says, and importing a domain is trusting it, so nothing is imported
but what was named. One that cannot be imported is somebody's broken package, not a broken host.
"""

from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from types import ModuleType

from qntx_es.domain import Domain
from qntx_es.errors import DomainRefused, UnknownDomain

GROUP = "qntx_es.domains"
# Beside the checkout, or inside the wheel.
HOMES = ("domains", "qntx_es._domains")


@dataclass(frozen=True, slots=True)
class Found:
    """A domain and where it came from."""

    domain: Domain
    home: str


def find_domain(name: str) -> Found:
    """Return the domain of this name. Raises `UnknownDomain` or `DomainRefused`."""
    installed = {entry.name: entry for entry in entry_points(group=GROUP)}
    if name in installed:
        entry = installed[name]
        return _checked(name, _import(name, entry.module), entry.attr or name)
    module = builtin(name)
    if module is None:
        raise UnknownDomain(name, [*installed, *_builtin_names()])
    return _checked(name, module, name)


def domain_at(target: str) -> Domain:
    """Return the domain of a name, or at a place such as `package.module:attribute`.

    Raises `UnknownDomain` or `DomainRefused`.
    """
    module, is_place, attribute = target.partition(":")
    if not is_place:
        return find_domain(target).domain
    domain = getattr(_import(target, module), attribute, None)
    if not isinstance(domain, Domain):
        raise DomainRefused(target, [f"{module} has no Domain called `{attribute}`"])
    return domain


def builtin(name: str) -> ModuleType | None:
    """Return the package of a built-in domain, or None where there is none."""
    if not name.isidentifier():
        return None
    for home in HOMES:
        if _home(home) is not None and find_spec(f"{home}.{name}") is not None:
            return _import(name, f"{home}.{name}")
    return None


def _home(home: str) -> ModuleType | None:
    try:
        return import_module(home)
    except ModuleNotFoundError:
        return None


def _builtin_names() -> list[str]:
    from pkgutil import iter_modules  # noqa: PLC0415 - only to name the nearest

    homes = [module for home in HOMES if (module := _home(home)) is not None]
    return [one.name for module in homes for one in iter_modules(module.__path__)]


def _import(name: str, module: str) -> ModuleType:
    try:
        return import_module(module)
    except (Exception, SystemExit) as error:
        raise DomainRefused(
            name, [f"{module} cannot be imported: {type(error).__name__}: {error}"]
        ) from error


def _checked(name: str, module: ModuleType, attribute: str) -> Found:
    domain = getattr(module, attribute, None)
    if not isinstance(domain, Domain):
        raise DomainRefused(name, [f"{module.__name__} has no Domain called `{attribute}`"])
    if domain.name != name:
        raise DomainRefused(name, [f"{module.__name__} calls itself `{domain.name}`"])
    return Found(domain, module.__name__)
