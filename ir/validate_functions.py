"""Checks on functions, imports and texts of a `ModelProto`; `validate` walks the graphs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import onnx
from onnx import AttributeProto
from opgraft.ir.errors import InputError
from opgraft.ir.program import DEFAULT_DOMAINS

INVALID = "the model is invalid; export it again"
FunctionKey = tuple[str, str, str]
"""Domain, name and overload."""


def check_text(text: object, where: str) -> None:
    # protobuf returns bytes where a string field is no UTF-8.
    if type(text) is not str:
        raise InputError(f"a name or text is no UTF-8: {text!r}", where=where, remedy="the file is damaged")


def check_texts(message: Any, where: str) -> None:
    """Every string in a message that is carried along must be UTF-8. For rare and small messages: it is slow."""
    pending = [message]
    while pending:
        for descriptor, value in pending.pop().ListFields():
            values = value if descriptor.is_repeated else [value]
            if descriptor.message_type is not None:
                pending.extend(values)
            elif descriptor.type == descriptor.TYPE_STRING:
                for text in values:
                    check_text(text, where)


def read_imports(protos: Iterable[onnx.OperatorSetIdProto], where: str) -> dict[str, int]:
    """Domain -> version, the default domain as ""."""
    found: dict[str, int] = {}
    for item in protos:
        check_text(item.domain, where)
        domain = "" if item.domain in DEFAULT_DOMAINS else item.domain
        if found.setdefault(domain, item.version) != item.version:
            raise InputError(
                f"operator sets {found[domain]} and {item.version} of {domain or 'ai.onnx'} are both imported",
                where=where,
                remedy="keep one",
            )
    return found


def function_keys(proto: onnx.ModelProto, where: str) -> set[FunctionKey]:
    keys: set[FunctionKey] = set()
    for function in proto.functions:
        key = (function.domain, function.name, function.overload)
        for text in key:
            check_text(text, where)
        if key in keys:
            raise InputError(f"function {key[0]}::{key[1]} is defined twice", where=where, remedy=INVALID)
        if not function.name:
            raise InputError("a function has no name", where=where, remedy=INVALID)
        keys.add(key)
    return keys


def check_no_files(message: onnx.TrainingInfoProto | AttributeProto, where: str) -> None:
    """Refuse external data in places that are carried along unread."""
    pending = [message]
    while pending:
        item = pending.pop()
        if isinstance(item, onnx.TensorProto) and item.data_location == onnx.TensorProto.EXTERNAL:
            raise InputError(
                f"tensor {item.name!r} of training information or an attribute's default has external data",
                where=where,
                remedy="save it with its data inside",
            )
        for descriptor, value in item.ListFields():
            if descriptor.message_type is not None:
                pending.extend(value if descriptor.is_repeated else [value])


def check_recursion(calls: dict[FunctionKey, set[FunctionKey]], where: str) -> None:
    """Depth first without recursion of our own: chains of functions may be long."""
    done: set[FunctionKey] = set()
    for root in calls:
        if root in done:
            continue
        open_keys = {root}
        stack = [(root, iter(calls[root]))]
        while stack:
            key, rest = stack[-1]
            follower = next(rest, None)
            if follower is None:
                done.add(key)
                open_keys.discard(key)
                stack.pop()
            elif follower in open_keys:
                raise InputError(f"function {follower[0]}::{follower[1]} calls itself", where=where, remedy=INVALID)
            elif follower not in done:
                open_keys.add(follower)
                stack.append((follower, iter(calls[follower])))
