"""Segments in a configuration: a list that a person wrote, or `auto`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Discriminator, Tag

from monitor.config.fields import Section


class Segment(Section):
    """A part of a model's traffic that is judged by itself: a feature alone stands for its frequent values."""

    feature: str
    """A feature, or principal or model_version."""
    name: str | None = None
    """What incidents call it; wanted where a condition stands beside the feature."""
    values: tuple[str, ...] = ()
    """Rows with one of these values."""
    at_least: float | None = None
    """Rows with a number from here on ..."""
    below: float | None = None
    """... and below this."""


def _by_name(value: object) -> object:
    return {"feature": value} if isinstance(value, str) else value


def _auto_or_list(value: object) -> str | None:
    return "list" if isinstance(value, list | tuple) else "auto" if value == "auto" else None


Listed = tuple[Annotated[Segment, BeforeValidator(_by_name, json_schema_input_type=str | Segment)], ...]
Segments = Annotated[  # a choice by form, so that a mistake in a list is said of its entry and not of every form
    Annotated[Literal["auto"], Tag("auto")] | Annotated[Listed, Tag("list")],
    Discriminator(
        _auto_or_list,
        custom_error_type="auto_or_list",
        custom_error_message="must be auto, or a list, for example [a, b]",
    ),
]
