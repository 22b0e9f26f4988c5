"""Which packages the modules of contrastive_zoo.integrations import; `make test` runs without these packages."""

from importlib.util import find_spec

PACKAGES = {"lightning": {"lightning"}, "huggingface": {"transformers"}, "state_callback": {"transformers"}}


def packages_of(module: str) -> set[str]:
    """Packages that a module may import, besides those that the core needs."""
    room, _, name = module.rpartition(".")
    return PACKAGES.get(name, set()) if room == "contrastive_zoo.integrations" else set()


def importable(module: str) -> bool:
    """Whether the packages that a module imports are installed."""
    return all(find_spec(package) for package in packages_of(module))
