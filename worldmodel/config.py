"""Configurations as YAML: dataclasses to sections of a file, and back with checks."""

from collections import Counter
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import yaml

from worldmodel.suggest import unknown_name

T = TypeVar("T")
MERGE_TAG = "tag:yaml.org,2002:merge"  # of the key <<
MAX_YAML_VALUES = 100_000  # in a file, with aliases expanded


def dump(**parts: Any) -> str:
    """Return dataclasses and plain values as YAML, one section each."""
    plain = {
        name: asdict(part) if is_dataclass(part) and not isinstance(part, type) else part
        for name, part in parts.items()
    }
    return yaml.safe_dump(plain, sort_keys=False)


def read_yaml(path: Path) -> Any:
    """Return the contents of a YAML file.

    Raises:
        ValueError: naming the file, if it is damaged, or endless: an alias may point to a list that contains it.
    """
    try:
        text = path.read_text("utf-8")
        _expanded(yaml.compose(text, yaml.SafeLoader), {})
        return yaml.safe_load(text)
    except Exception as error:  # damage can make the parser raise anything
        raise ValueError(f"{path} cannot be read as YAML: {error}") from error


def _expanded(node: yaml.Node | None, sizes: dict[int, float]) -> float:
    """Return the number of values in a part of a YAML file with all aliases expanded."""
    if id(node) not in sizes:
        sizes[id(node)] = float("inf")  # for a node within itself
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        flat = [part for pair in parts for part in pair] if isinstance(node, yaml.MappingNode) else parts
        if isinstance(node, yaml.MappingNode):
            keys = Counter((key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode))
            if twice := [name for (tag, name), count in keys.items() if count > 1 and tag != MERGE_TAG]:
                raise ValueError(f"it has {twice[0]!r} twice")
        sizes[id(node)] = 1 + sum(_expanded(part, sizes) for part in flat)
        if sizes[id(node)] > MAX_YAML_VALUES:
            raise OverflowError(f"it holds more than {MAX_YAML_VALUES} values")
    return sizes[id(node)]


def build(kind: type[T], values: dict[str, Any], source: Path) -> T:
    """Make the dataclass ``kind`` from a section of the YAML file ``source``.

    Raises:
        ValueError: naming the file and the first key that is unknown (with the nearest known one), has a value of
            another type, or is out of range.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{source}: a {kind.__name__} must be settings by name, got {values!r:.80}")
    hints = get_type_hints(kind)
    for name, value in values.items():
        if name not in hints:
            raise ValueError(f"{source}: {unknown_name(kind.__name__ + ' setting', str(name), hints)}")
        if not is_dataclass(hints[name]) and not _fits(value, hints[name]):
            expected = getattr(hints[name], "__name__", hints[name]) if not get_args(hints[name]) else hints[name]
            raise ValueError(f"{source}: {kind.__name__} {name} must be {expected}, got {value!r:.80}")
    nested = {name: build(hints[name], value, source) for name, value in values.items() if is_dataclass(hints[name])}
    try:
        return kind(**{**values, **nested})
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def _fits(value: Any, hint: Any) -> bool:
    """Return whether a YAML value has a field's type. Integers pass as floats, and lists as tuples."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return value in arguments
    if origin in (tuple, list):
        fixed = origin is tuple and arguments[-1] is not ...
        right = isinstance(value, list | tuple) and (not fixed or len(value) == len(arguments))
        return right and all(_fits(item, arguments[0]) for item in value)
    if isinstance(value, bool) or hint is bool:
        return isinstance(value, bool) and hint is bool
    return isinstance(value, int | float if hint is float else hint)
