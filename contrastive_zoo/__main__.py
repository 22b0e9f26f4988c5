"""Lists the registered names with one line each: ``python -m contrastive_zoo``; with a name, prints its summary."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from contrastive_zoo.batch_samplers import describe_batch_sampler, list_batch_samplers
from contrastive_zoo.loss import describe_loss, list_losses
from contrastive_zoo.registry import Card
from contrastive_zoo.samplers import describe_sampler, list_samplers

KINDS = {
    "Objectives, zoo.get_loss(name)": (list_losses, describe_loss),
    "Negative samplers, zoo.get_sampler(name)": (list_samplers, describe_sampler),
    "Batch samplers, zoo.get_batch_sampler(name)": (list_batch_samplers, describe_batch_sampler),
}


def listing() -> str:
    """Every name with what its call needs and its summary, on one line each."""
    lines = []
    for title, (names, describe) in KINDS.items():
        lines += ["", title, f"  {'name':<22}{'needs':<8}summary"]
        lines += [_line(name, describe) for name in names()]
    return "\n".join(lines[1:])


def _line(name: str, describe: Callable[[str], Card]) -> str:
    try:
        card = describe(name)
    except ImportError as error:  # a plugin that does not load
        return f"  {name:<30}{error}"
    return f"  {card.name:<22}{', '.join(sorted(card.needs)):<8}{card.summary}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the list, or the summary of a name.

    Raises:
        SystemExit: The name is unknown.
    """
    parser = argparse.ArgumentParser(prog="python -m contrastive_zoo", description="Objectives and samplers by name.")
    parser.add_argument("name", nargs="?", help="a name to describe in full")
    name = parser.parse_args(arguments).name
    if name is None:
        print(listing(), flush=True)
        return
    unknown = []
    for _, describe in KINDS.values():
        try:
            print(describe(name))
            return
        except ValueError as error:
            unknown.append(error)
        except ImportError as error:
            parser.error(str(error))
    parser.error(str(unknown[0]))


if __name__ == "__main__":
    try:
        main()
    except BrokenPipeError:  # whoever read has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
