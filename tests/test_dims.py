"""Symbolic dimensions against Python's own integers."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opgraft.ir.dim_text import parse_dim
from opgraft.ir.dims import add_all, ceil_divide, dim, evaluate, floor_divide, maximum, names_of
from opgraft.ir.errors import UsageError

BINDINGS = st.fixed_dictionaries({name: st.integers(0, 40) for name in "abc"})


@st.composite
def expressions(draw, depth=3):
    """(text in Python syntax) over the names a, b, c."""
    if depth == 0 or draw(st.booleans()):
        return draw(st.sampled_from(["a", "b", "c", "1", "2", "7", "12"]))
    left, right = draw(expressions(depth=depth - 1)), draw(expressions(depth=depth - 1))
    operator = draw(st.sampled_from(["+", "-", "*", "//", "max"]))
    if operator == "max":
        return f"max({left}, {right})"
    if operator == "//":
        return f"(({left}) // {draw(st.integers(1, 9))})"
    return f"(({left}) {operator} ({right}))"


@settings(max_examples=400, deadline=None)
@given(expressions(), BINDINGS)
def test_expression_has_the_value_python_gives(text, bindings):
    expected = eval(text, {"max": max}, bindings)
    parsed = parse_dim(text)
    assert evaluate(parsed, bindings) == expected
    # What is printed reads back as the same expression.
    assert parse_dim(str(parsed)) == parsed


def test_equal_expressions_are_equal_however_written():
    batch, seq = dim("batch"), dim("seq")
    assert (batch + seq) * (batch - seq) == batch * batch - seq * seq
    assert hash(batch * seq * 2) == hash(seq * 2 * batch)
    assert seq - seq == 0
    assert floor_divide(batch * seq * 8, seq * 4) == batch * 2
    assert floor_divide(batch * 2 + 2, 4) == floor_divide(batch + 1, 2)
    assert ceil_divide(seq * 4, 8) == ceil_divide(seq, 2)
    assert add_all([seq, 1, batch, -1, -seq]) == batch


def test_maximum_is_decided_only_when_it_holds_for_an_empty_dim():
    past = dim("past")
    assert maximum(past + 3, past) == past + 3
    undecided = maximum(past, 1)
    assert evaluate(undecided, {"past": 0}) == 1
    assert evaluate(undecided, {"past": 5}) == 5


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("batch-size", {"batch-size"}),
        ("past - 1", {"past"}),
        ("input_ids.0", {"input_ids.0"}),
        ("two words", {"two words"}),
        ("__import__('os').getcwd()", {"__import__('os').getcwd()"}),
        ("9**9**9", {"9**9**9"}),
        ("a//0", {"a//0"}),
        ("floor(H/2 + 1/2)", {"H"}),
        ("(" * 5000 + "a" + ")" * 5000, None),
    ],
)
def test_text_is_arithmetic_or_a_name(text, names):
    found = names_of(parse_dim(text))
    assert found == (names if names is not None else {text})


def test_exporters_fraction():
    half = parse_dim("floor(H/2 + 1/2)")
    for height in range(12):
        assert evaluate(half, {"H": height}) == (height + 1) // 2


def test_missing_name_is_named():
    with pytest.raises(UsageError, match="'seq' has no value"):
        evaluate(dim("seq") * 2, {"batch": 1})


def test_sums_stay_linear():
    """The sum of many sizes holds one term per distinct monomial."""
    generator = random.Random(0)
    names = [dim(name) for name in "abcd"]
    sizes = [generator.choice(names) * generator.choice(names) * 3 for _ in range(2000)]
    bindings = {name: generator.randrange(1, 9) for name in "abcd"}
    assert evaluate(add_all(sizes), bindings) == sum(evaluate(size, bindings) for size in sizes)
    assert str(add_all(sizes)).count(" + ") < 10
