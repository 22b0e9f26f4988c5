"""Which backend computes a sweep."""

from contrastive_zoo.checks import check_choice

BACKENDS = ("auto", "dense", "tiled")


def choose_backend(backend: str) -> str:
    """Resolve "auto"; an explicit request is never replaced by another backend."""
    check_choice("backend", backend, BACKENDS)
    return "tiled" if backend == "auto" else backend
