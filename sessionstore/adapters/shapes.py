"""Plain values of models, for those of a shape that was seen to come back from them.

A framework's own way to JSON and back again, to see whether anything is lost, costs many times what
storing does. Whether something is lost depends on what the fields hold, not on every word: on their
types, and on the values of those that say what a thing is. This is a model's shape. Of each shape
one model is read back and compared; for the others a walk over the fields is enough.

Models are dataclasses and pydantic's.
"""

from __future__ import annotations

import dataclasses
import math
from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping, Sequence, Set
from datetime import UTC, datetime
from enum import Enum
from functools import partial
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import msgspec

from ..codec import DEPTH_LIMIT, is_deeper
from .packing import is_carried

_FORMS_LIMIT = 1_000  # that are compiled; models that need more are not made plain
_SHAPES_LIMIT = 10_000  # that are remembered; models of others are read back each time
_LEVELS_LIMIT = 32  # of models within models, which may be in lists
_DEPTH_LIMIT = DEPTH_LIMIT // 2  # levels of a value of theirs; all together are then few enough
_SMALLEST, _LARGEST = -(1 << 63), (1 << 64) - 1

Step = Callable[[Any, "list[Any]"], Any]
"""Makes a field's value plain, and notes the shapes of models in it."""


class _NotPlainError(Exception):
    """A value is none that may be made plain here."""


# What a walk over values of any kind may raise.
_OBSTACLES = (_NotPlainError, ValueError, TypeError, AttributeError, LookupError, RecursionError)


_Form = Callable[[Any, "list[Any]"], "dict[str, Any] | None"]
"""Makes models of one class plain whose fields hold values of the same types; None = not this."""


class _Place:
    """Where models stand, such as a field of a class.

    Attributes:
        level: models that it is within.
        latest: the form that was used there last, which is tried first.
        forms: by class, names and types; None = such models are not made plain.
    """

    __slots__ = ("forms", "latest", "level")

    def __init__(self, level: int = 0) -> None:
        if level > _LEVELS_LIMIT:
            raise _NotPlainError
        self.level = level
        self.latest: _Form = lambda *_: None
        self.forms: dict[tuple[Any, ...], _Form | None] = {}


class _Field(NamedTuple):
    """What a class says of a field.

    Attributes:
        hint: its annotation.
        kinds: the types that stand in it, parts of unions each for itself.
        is_free: any JSON value is read as it is.
        is_checked: reading a model may refuse or change the value whatever its type.
    """

    hint: Any
    kinds: set[Any]
    is_free: bool = False
    is_checked: bool = False


class Shapes:
    """Makes models plain that are known to come back.

    Args:
        comes_back: whether what was made of a model is read as that model.
        left_out: fields that stand elsewhere, by class and name.
        harmless: `__post_init__` of dataclasses that refuse and change nothing, whatever the
            values of fields. Models with others are not made plain.
    """

    def __init__(
        self,
        comes_back: Callable[[dict[str, Any], Any], bool],
        left_out: Set[tuple[type[Any], str]] = frozenset(),
        harmless: Set[Any] = frozenset(),
    ) -> None:
        self._comes_back = comes_back
        self._left_out = left_out
        self._harmless = harmless
        self._root = _Place()
        self._form_count = 0
        self._known: set[Any] = set()
        self._refused: set[tuple[Any, ...]] = set()

    def plain(self, model: Any) -> dict[str, Any] | None:
        """A model as JSON values, without what is None; None = it may not come back from those."""
        shapes: list[Any] = []
        try:
            content = self._walk(self._root, model, shapes)
            if self._known.issuperset(shapes) or self._learn(shapes, content, model):
                return content
        except _OBSTACLES:
            pass
        return None

    def _learn(self, shapes: list[Any], content: dict[str, Any], model: Any) -> bool:
        """Whether models of these shapes come back, by the first."""
        if tuple(shapes) in self._refused:
            return False
        if not self._comes_back(content, model):
            if len(self._refused) < _SHAPES_LIMIT:
                self._refused.add(tuple(shapes))
            return False
        if len(self._known) < _SHAPES_LIMIT:
            self._known.update(shapes)
        return True

    def _walk(self, place: _Place, model: Any, shapes: list[Any]) -> dict[str, Any]:
        content = place.latest(model, shapes)
        if content is None:
            form = place.latest = self._form_of(place, type(model), model.__dict__)
            content = form(model, shapes)
            if content is None:
                raise _NotPlainError
        return content

    def _walk_each(self, place: _Place, models: list[Any], shapes: list[Any]) -> list[Any]:
        return [self._walk(place, model, shapes) for model in models]

    def _form_of(self, place: _Place, kind: type[Any], fields: dict[str, Any]) -> _Form:
        """How to make models plain that are like the one with these fields; made only once."""
        left_out = [name for name in fields if (kind, name) in self._left_out]
        content = {
            name: value
            for name, value in fields.items()
            if value is not None and name not in left_out
        }
        key = (kind, *fields, *content, *map(type, content.values()))
        form = place.forms.get(key)
        if form is None:
            if key in place.forms or self._form_count >= _FORMS_LIMIT:
                raise _NotPlainError
            self._form_count += 1
            place.forms[key] = None
            form = place.forms[key] = self._new_form(place, kind, fields.keys(), content, left_out)
        return form

    def _new_form(
        self,
        place: _Place,
        kind: type[Any],
        names: Set[str],
        content: dict[str, Any],
        left_out: list[str],
    ) -> _Form:
        if getattr(kind, "__post_init__", None) not in {None, *self._harmless}:
            raise _NotPlainError
        known = _fields_of(kind)
        absent = names - content.keys() - {*left_out}
        steps: dict[str, Step] = {}
        telling = []
        for name, value in content.items():
            if name not in known:
                raise _NotPlainError
            field = known[name]
            step = self._step(place, value, field)
            if step is not None:
                steps[name] = step
            if step is _member or (type(value) in _SCALARS and _tells(name, field)):
                telling.append(name)
        types = {name: type(value) for name, value in content.items()}
        return _compiled(kind, len(names), absent, types, steps, telling)

    def _step(self, place: _Place, value: Any, field: _Field) -> Step | None:
        """What becomes of values of this one's type; None = they stay as they are."""
        kind = type(value)
        if field.is_checked:
            return _empty
        if kind in _SCALARS:
            named = kind in field.kinds or field.kinds <= _ANYTHING or _tells("", field)
            if not named or not all(map(_is_apart, field.kinds)):
                raise _NotPlainError  # what is read may be of another type
            return _SCALARS[kind]
        if isinstance(value, Enum):
            return _member
        if kind in (dict, list):
            item = _item_of(field.hint, kind)
            if field.is_free or (kind is dict and item is Any):
                return _json
            if kind is dict or item in _SCALARS:
                return partial(_each, item)
            return partial(self._walk_each, _Place(place.level + 1))
        if kind in _STEPS:
            return _STEPS[kind]
        if kind not in field.kinds:
            raise _NotPlainError  # it would be read as something else, such as a dict
        return _default(value, partial(self._walk, _Place(place.level + 1)))


def _compiled(
    kind: type[Any],
    count: int,
    absent: Set[str],
    types: dict[str, type[Any]],
    steps: dict[str, Step],
    telling: list[str],
) -> _Form:
    """A form, written out and compiled as dataclasses are.

    Models have dozens of fields of which few are set, and it has to be seen of each whether it is:
    no loop does that as fast.

    Args:
        kind: the class.
        count: how many fields there are, with those that are left out.
        absent: fields that are None.
        types: the others, with the types of their values.
        steps: of these, fields that do not stay as they are, and what becomes of them.
        telling: fields of which the value, not only the type, is part of the shape.
    """
    variables = {name: f"value{number}" for number, name in enumerate(types)}
    space: dict[str, Any] = {"kind": kind}
    tests = [f"len(fields) != {count}", *(f"fields[{name!r}] is not None" for name in absent)]
    others = ["False"]
    items = []
    for name, variable in variables.items():
        space |= {f"type_of_{variable}": types[name], f"step_of_{variable}": steps.get(name)}
        others.append(f"type({variable}) is not type_of_{variable}")
        step = f"step_of_{variable}({variable}, shapes)" if name in steps else variable
        items.append(f"{name!r}: {step}")
    lines = [
        "def form(model, shapes):",
        "    if type(model) is not kind: return None",
        "    fields = model.__dict__",
        f"    if {' or '.join(tests)}: return None",
        *(f"    {variable} = fields[{name!r}]" for name, variable in variables.items()),
        f"    if {' or '.join(others)}: return None",
        f"    shapes.append((form, {', '.join(variables[name] for name in telling)}))"
        if telling
        else "    shapes.append(form)",
        f"    return {{{', '.join(items)}}}",
    ]
    exec("\n".join(lines), space)
    form: _Form = space["form"]
    return form


def _fields_of(kind: type[Any]) -> dict[str, _Field]:
    """The fields of a class of models."""
    if not _is_model(kind):
        raise _NotPlainError
    if dataclasses.is_dataclass(kind):
        try:
            hints = get_type_hints(kind)
        except Exception:  # an annotation may be anything, also a name for type checkers only
            raise _NotPlainError from None
        # What is not compared would not be missed when it is read back.
        names = [field.name for field in dataclasses.fields(kind) if field.compare]
        return {name: _Field(hints[name], _kinds_of(hints[name])) for name in names}
    validators = kind.__pydantic_decorators__.field_validators.values()
    checked = {name for validator in validators for name in validator.info.fields}
    if "*" in checked or kind.model_config.get("extra") == "allow":
        raise _NotPlainError
    fields = {}
    for name, field in kind.model_fields.items():
        kinds = _kinds_of(field.annotation)
        is_checked = name in checked or bool(field.metadata)
        fields[name] = _Field(field.annotation, kinds, kinds <= _ANYTHING, is_checked)
    return fields


def _is_model(kind: type[Any]) -> bool:
    return dataclasses.is_dataclass(kind) or hasattr(kind, "__pydantic_decorators__")


def _default(value: Any, walk: Step) -> Step:
    """The step of a model; if this one has nothing set, one that is quicker with such."""
    kind = type(value)
    _fields_of(kind)  # refuses classes whose models hold more
    try:
        default = kind().__dict__
    except Exception:  # whatever a class raises that needs arguments
        return walk
    if value.__dict__ != default:
        return walk
    known = object()

    def step(model: Any, shapes: list[Any]) -> Any:
        if model.__dict__ == default:
            shapes.append(known)
            return {}
        return walk(model, shapes)

    return step


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


def _bytes(value: bytes, _: list[Any]) -> str:
    if not value:
        raise _NotPlainError  # it would not show how bytes are read
    return urlsafe_b64encode(value).decode()


def _texts(value: set[Any], _: list[Any]) -> list[Any]:
    texts = sorted(value)
    if any(type(text) is not str for text in texts):
        raise _NotPlainError
    return texts


def _member(value: Enum, _: list[Any]) -> Any:
    return value.value


def _empty(value: Any, _: list[Any]) -> Any:
    if value:
        raise _NotPlainError
    return value


def _json(value: Any, _: list[Any]) -> Any:
    if value and (not is_carried(value) or is_deeper(value, _DEPTH_LIMIT)):
        raise _NotPlainError
    return value


def _each(kind: Any, value: Any, shapes: list[Any]) -> Any:
    """A list or a dict whose items are all of one type."""
    items = value.values() if type(value) is dict else value
    if any(type(item) is not kind for item in items):
        raise _NotPlainError
    return _json(value, shapes)


_SCALARS: dict[Any, Step | None] = {str: None, bool: None, int: _integer, float: _number}

_STEPS: dict[type[Any], Step] = {datetime: _instant, bytes: _bytes, set: _texts}


_ANYTHING = {Any, NoneType}
_APART = {*_ANYTHING, str, bool, int, float, dict, list, Mapping, Sequence, Literal}


def _tells(name: str, field: _Field) -> bool:
    """Whether the value of a field may say what a thing is, or be one of few."""
    return name.endswith("kind") or any(
        kind is Literal or (isinstance(kind, type) and issubclass(kind, Enum))
        for kind in field.kinds
    )


def _is_apart(kind: Any) -> bool:
    """Whether no value of a type is written like one of another.

    Those that are, such as instants, may be what a text is read as that stands beside them.
    """
    if kind in _APART:
        return True
    return isinstance(kind, type) and (issubclass(kind, Enum) or _is_model(kind))


def _kinds_of(hint: Any) -> set[Any]:
    """The types in an annotation, parts of unions each for itself."""
    found: set[Any] = set()
    left = [hint]
    seen: list[Any] = []
    while left:
        hint = left.pop()
        origin = get_origin(hint)
        if origin in (Union, UnionType, Annotated):
            left += get_args(hint)
        elif hasattr(hint, "__value__"):  # a type alias, which may hold itself
            if hint not in seen:
                seen.append(hint)
                left.append(hint.__value__)
        else:
            found.add(hint if origin is None else origin)
    return found


def _item_of(hint: Any, container: type[Any]) -> Any:
    """X of an annotation `dict[str, X]` or `list[X]`, alone or beside str and None; else None."""
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    rest = [part for part in parts if part not in (str, NoneType)]
    if len(rest) != 1 or get_origin(rest[0]) is not container:
        return None
    *names, item = get_args(rest[0])
    return item if names == [str] * (container is dict) else None
