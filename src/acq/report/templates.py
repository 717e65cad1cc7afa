"""The environment of this room's templates."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined


def environment() -> Environment:
    """The templates. They escape every value, and an undefined name is an error."""
    return Environment(
        loader=PackageLoader("acq.report", "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
