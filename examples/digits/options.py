"""What the command lines of the examples share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TypeVar

BACKENDS = ("auto", "torch", "cpp", "cupy")
Number = TypeVar("Number", int, float)


class UsageError(Exception):
    """Something was asked for that cannot be had here."""


def parser(about: str | None) -> argparse.ArgumentParser:
    """A parser that shows the first line of ``about``, and all defaults."""
    return argparse.ArgumentParser(
        description=(about or "").partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )


def number(kind: type[Number], least: Number | None = None) -> Callable[[str], Number]:
    """A parser of finite numbers >= ``least``, > 0 by default."""
    expected = f"{'an integer' if kind is int else 'a number'} {'> 0' if least is None else f'>= {least}'}"

    def parse_number(text: str) -> Number:
        try:
            value = kind(text)
        except ValueError:
            value = kind(-1)
        if not (0 < value < float("inf") if least is None else value >= least):
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
        return value

    return parse_number
