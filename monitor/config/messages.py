"""What is said about a value that does not fit: in words that a person can act on, never with the value of a secret."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from types import UnionType
from typing import Any, Final, Literal

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from monitor.config.tree import Config

Key = tuple[str | int, ...]

_PLAIN: Final = {
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "string_type": "must be text; put it in quotes",
    "path_type": "must be a path",
    "tuple_type": "must be a list, for example [a, b]",
    "list_type": "must be a list, for example [a, b]",
    "dict_type": "must be a mapping of keys to values",
    "model_type": "must be a mapping of keys to values",
    "model_attributes_type": "must be a mapping of keys to values",
}
_BOUND: Final = {
    "greater_than": ("gt", "must be more than"),
    "greater_than_equal": ("ge", "must be at least"),
    "less_than": ("lt", "must be less than"),
    "less_than_equal": ("le", "must be at most"),
}


def worded(errors: ValidationError, data: Any, root: type[BaseModel] = Config) -> Iterator[tuple[Key, str]]:
    """(key, sentence) for every mistake; the alternatives of a union become one sentence. `root`: the tree's type."""
    grouped: dict[Key, list[ErrorDetails]] = {}
    for error in errors.errors(include_url=False, include_context=True):
        key = _real(error["loc"], data, missing=error["type"] in ("missing", "extra_forbidden"))
        grouped.setdefault(key, []).append(error)
    for key, found in grouped.items():
        texts = list(dict.fromkeys(_sentence(key, error, root) for error in found))
        if len(texts) > 1:
            texts = [t.split(";")[0] for t in texts]
            texts = [" or ".join([texts[0], *(t.removeprefix("must be ") for t in texts[1:])])]
        path = ".".join(map(str, key))
        yield key, texts[0] if found[0]["type"] in ("missing", "extra_forbidden") or not path else f"{path}: {texts[0]}"


def unknown_key(section: type[BaseModel] | None, parent: Key, name: str) -> str:
    """The sentence for a key that does not exist, with the nearest that does."""
    known = [n for n in section.model_fields if n != "folder"] if section else []
    near = get_close_matches(name, known, 1)
    hint = f"; did you mean `{near[0]}`?" if near else f"; known are {', '.join(known)}" if known else ""
    return f"{'.'.join(map(str, parent)) or 'the file'}: unknown key `{name}`{hint}"


def _sentence(key: Key, error: ErrorDetails, root: type[BaseModel]) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind == "missing":
        return _missing(key[:-1], str(key[-1]), root)
    if kind == "extra_forbidden":
        return unknown_key(_section(key[:-1], root), key[:-1], str(key[-1]))
    if kind == "value_error":
        return str(context["error"])
    if kind in ("literal_error", "enum"):
        return f"must be {context['expected'].replace(chr(39), '')}"
    if kind in _BOUND:
        name, words = _BOUND[kind]
        return f"{words} {context[name]:g}"
    if kind == "too_short":
        return "name at least one model" if key == ("models",) else "must not be empty"
    if kind == "too_long":
        return f"must have at most {context['max_length']} entries"
    return _PLAIN.get(kind, error["msg"])


def _missing(parent: Key, name: str, root: type[BaseModel]) -> str:
    section = _section(parent, root)
    choices: Sequence[Any] = ()
    if section and name in section.model_fields:
        annotation = section.model_fields[name].annotation
        choices = typing.get_args(annotation) if typing.get_origin(annotation) is Literal else ()
    hint = f"; write {', '.join(choices[:-1])} or {choices[-1]}" if choices else ""
    return f"{'.'.join(map(str, parent)) or 'the file'}: `{name}` is missing{hint}"


def _real(loc: tuple[int | str, ...], data: Any, *, missing: bool) -> Key:
    """The part of pydantic's location that names keys of the data; the rest are branches of a union."""
    key: list[str | int] = []
    for part in loc:
        if part == "list" and isinstance(data, list):  # the tag of a branch that was chosen
            continue
        held = (isinstance(data, dict) and part in data) or (
            isinstance(data, list) and isinstance(part, int) and part < len(data)
        )
        if held:
            data = data[part]
        else:
            return (*key, part) if missing else tuple(key)
        key.append(part)
    return tuple(key)


def _section(key: Key, root: type[BaseModel]) -> type[BaseModel] | None:
    """The section that stands at this key."""
    at: Any = root
    for part in key:
        if isinstance(at, type) and issubclass(at, BaseModel):
            field = at.model_fields.get(str(part))
            at = field.annotation if field else None
        elif typing.get_origin(at) in (dict, tuple):
            at = typing.get_args(at)[1 if typing.get_origin(at) is dict else 0]
        if typing.get_origin(at) in (UnionType, typing.Union):
            at = next((a for a in typing.get_args(at) if isinstance(a, type) and issubclass(a, BaseModel)), None)
    return at if isinstance(at, type) and issubclass(at, BaseModel) else None
