"""The passes by name: the directory listing of our own, and entry points of other packages."""

from __future__ import annotations

import dataclasses
import difflib
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from opgraft.ir.errors import ContractError, UsageError
from opgraft.passes._pass import Pass, kebab_case

ENTRY_POINT_GROUP = "opgraft.passes"


@cache
def builtin_modules() -> dict[str, str]:
    """Pass name -> module; a pass is a file whose name is the pass's, in a folder of this package."""
    root = Path(__file__).parent
    found: dict[str, str] = {}
    for file in sorted(root.glob("*/*.py")):
        if file.stem.startswith("_") or file.parent.name not in PASS_FOLDERS:
            continue
        name, module = file.stem.replace("_", "-"), f"opgraft.passes.{file.parent.name}.{file.stem}"
        if name in found:
            raise ContractError(f"pass {name!r} is in {found[name]} and in {module}", remedy="keep one")
        found[name] = module
    return found


PASS_FOLDERS = ("simplify", "canonicalize", "lower")


def known_passes() -> list[str]:
    return sorted({*builtin_modules(), *outside_passes()})


@cache
def outside_passes() -> dict[str, Any]:
    """Entry points of other packages by name. Raises ContractError when one shadows a built-in."""
    found = {}
    for point in entry_points(group=ENTRY_POINT_GROUP):
        if point.name in builtin_modules():
            raise ContractError(
                f"pass {point.name!r} of package {point.dist.name if point.dist else '?'} shadows a built-in pass",
                remedy="rename it",
            )
        found[point.name] = point
    return found


def pass_class(name: str) -> type[Pass]:
    """The class behind a name. Raises UsageError listing the known names."""
    module = builtin_modules().get(name)
    if module is not None:
        wanted = import_module(module)
        for value in vars(wanted).values():
            if isinstance(value, type) and issubclass(value, Pass) and kebab_case(value.__name__) == name:
                return value
        raise ContractError(f"{module} holds no pass named {name!r}")
    point = outside_passes().get(name)
    if point is None:
        near = difflib.get_close_matches(name, known_passes(), n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UsageError(f"no pass is named {name!r}", remedy=f"{hint}known: {', '.join(known_passes())}")
    cls = point.load()
    if not (isinstance(cls, type) and issubclass(cls, Pass)):
        raise ContractError(f"entry point {name!r} is not a Pass class")
    return cls


def make_pass(name: str, options: dict[str, str]) -> Pass:
    """Construct a pass from option texts, converted to the types of its fields. Raises UsageError."""
    cls = pass_class(name)
    fields = {f.name.replace("_", "-"): f for f in dataclasses.fields(cls)}
    values = {}
    for key, text in options.items():
        if key not in fields:
            known = ", ".join(fields) or "none"
            raise UsageError(f"pass {name!r} has no option {key!r}", remedy=f"its options: {known}")
        values[fields[key].name] = _convert(name, key, text, str(fields[key].type))
    try:
        return cls(**values)
    except ValueError as error:
        raise UsageError(f"pass {name!r}: {error}") from None


def _convert(pass_name: str, key: str, text: str, kind: str) -> Any:
    try:
        if kind == "bool":
            return {"true": True, "false": False, "1": True, "0": False}[text.lower()]
        if kind in ("int", "float"):
            return (int if kind == "int" else float)(text)
        if kind.startswith("tuple[int"):
            return tuple(int(part) for part in text.split(":"))
    except (KeyError, ValueError):
        raise UsageError(f"pass {pass_name!r}: {key}={text!r} is not {_article(kind)}") from None
    return text


def _article(kind: str) -> str:
    return {"bool": "true or false", "int": "an integer", "float": "a number"}.get(kind, f"a {kind}")
