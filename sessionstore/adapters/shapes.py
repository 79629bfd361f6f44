"""Plain values of dataclasses, for those of a shape that was seen to come back from them.

A framework's own way to JSON and back again, to see whether anything is lost, costs many times what
storing does. Whether something is lost depends on what the fields hold, not on every word: on their
types, and on the values of those that say what a thing is. This is a model's shape. Of each shape
one model is read back and compared; for the others a walk over the fields is enough.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from operator import itemgetter
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from .packing import is_carried

_LIMIT = 10_000  # forms and shapes that are remembered; more would be none
_SMALLEST, _LARGEST = -(1 << 63), (1 << 64) - 1

Step = Callable[[Any, "list[Any]"], Any]
"""Makes a field's value plain, and notes the shapes of models in it."""

_Forms = dict[tuple[Any, ...], "_Form | None"]
"""By class, names and types: forms of the models in one place, such as a field of a class."""


class _NotPlainError(Exception):
    """A value is none that may be made plain here."""


class _Form:
    """How models of one class are made plain whose fields hold values of the same types.

    Attributes:
        steps: fields that do not stay as they are, and what becomes of them.
        telling: takes the fields of which the value, not only the type, is part of the shape.
    """

    __slots__ = ("steps", "telling")

    def __init__(self, steps: list[tuple[str, Step]], names: list[str]) -> None:
        self.steps = steps
        self.telling = itemgetter(*names) if names else None


_Shape = _Form | tuple[_Form, Any]


class Shapes:
    """Makes dataclasses plain that are known to come back.

    Args:
        comes_back: whether what was made of a model is read as that model.
    """

    def __init__(self, comes_back: Callable[[dict[str, Any], Any], bool]) -> None:
        self._comes_back = comes_back
        self._forms: _Forms = {}
        self._form_count = 0
        self._known: set[_Shape] = set()

    def plain(self, model: Any) -> dict[str, Any] | None:
        """A model as JSON values, without what is None; None = it may not come back from those."""
        shapes: list[_Shape] = []
        try:
            content = self._walk(self._forms, model, shapes)
        except _NotPlainError:
            return None
        if not self._known.issuperset(shapes):
            if not self._comes_back(content, model):
                return None
            if len(self._known) < _LIMIT:
                self._known.update(shapes)
        return content

    def _walk(self, forms: _Forms, model: Any, shapes: list[_Shape]) -> dict[str, Any]:
        try:
            fields = model.__dict__
        except AttributeError:
            raise _NotPlainError from None
        content = {name: value for name, value in fields.items() if value is not None}
        key = (type(model), len(fields), *content, *map(type, content.values()))
        form = forms.get(key)
        if form is None:
            form = self._add_form(forms, key, fields)
        for name, step in form.steps:
            content[name] = step(content[name], shapes)
        shapes.append((form, form.telling(content)) if form.telling else form)
        return content

    def _walk_each(self, forms: _Forms, models: list[Any], shapes: list[_Shape]) -> list[Any]:
        return [self._walk(forms, model, shapes) for model in models]

    def _add_form(self, forms: _Forms, key: tuple[Any, ...], fields: dict[str, Any]) -> _Form:
        """How to make models plain that are like the one with these fields; asked only once."""
        kind = key[0]
        if key in forms or self._form_count >= _LIMIT or not dataclasses.is_dataclass(kind):
            raise _NotPlainError
        self._form_count += 1
        forms[key] = None
        content = {name: value for name, value in fields.items() if value is not None}
        names = {field.name for field in dataclasses.fields(kind)}
        if not names <= fields.keys() and len(content) < len(fields):
            raise _NotPlainError  # some fields are None, and some not there, as on the class
        try:
            hints = get_type_hints(kind)
        except NameError:  # of what is imported for type checkers only
            raise _NotPlainError from None
        steps, telling = [], []
        for name, value in content.items():
            if name not in names:
                raise _NotPlainError
            if type(value) in (str, bool):
                if _is_literal(hints[name]) or name.endswith("kind"):
                    telling.append(name)
            else:
                steps.append((name, self._step(value, hints[name])))
        form = forms[key] = _Form(steps, telling)
        return form

    def _step(self, value: Any, hint: Any) -> Step:
        if type(value) is dict:
            return _json if _is_json(hint) else _empty
        if type(value) is list:
            return partial(self._walk_each, {})
        if dataclasses.is_dataclass(value):
            return partial(self._walk, {})
        if type(value) not in _STEPS:
            raise _NotPlainError
        return _STEPS[type(value)]


def _integer(value: int, _: list[Any]) -> int:
    if not _SMALLEST <= value <= _LARGEST:
        raise _NotPlainError
    return value


def _number(value: float, _: list[Any]) -> float:
    if not math.isfinite(value):
        raise _NotPlainError
    return value


def _instant(value: datetime, _: list[Any]) -> Any:
    if value.tzinfo is not UTC:
        raise _NotPlainError
    return msgspec.to_builtins(value)


def _empty(value: dict[str, Any], _: list[Any]) -> dict[str, Any]:
    if value:
        raise _NotPlainError
    return value


def _json(value: dict[str, Any], _: list[Any]) -> dict[str, Any]:
    if value and not is_carried(value):
        raise _NotPlainError
    return value


_STEPS: dict[type[Any], Step] = {int: _integer, float: _number, datetime: _instant}


def _is_literal(hint: Any) -> bool:
    """Whether a field of this annotation may hold a literal."""
    return get_origin(hint) is Literal or any(_is_literal(part) for part in get_args(hint))


def _is_json(hint: Any) -> bool:
    """Whether every dict that JSON carries is the same in a field of this annotation."""
    if hint == dict[str, Any]:
        return True
    parts = [part for part in get_args(hint) if part not in (str, type(None))]
    return get_origin(hint) is not dict and len(parts) == 1 and _is_json(parts[0])
