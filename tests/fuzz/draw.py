"""A graph under construction. Every value has a type and, at two bindings of the symbolic dims, a shape.

An emitter picks values, chooses legal attributes, and adds nodes; where nothing legal is found it raises `Unfit`, and
the graph stays as it was. All choices come from one seeded generator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes  # noqa: F401 - registers the small floating-point types
import numpy as np
import onnx
import onnx.numpy_helper
from onnx import NodeProto, TensorProto, helper

from fuzz.kernels import (
    BOOL,
    DTYPES,
    FLOAT,
    FLOATS,
    INT64,
    INTEGERS,
    STRING,
    input_types,
    numpy_type,
    supported,
)
from fuzz.values import Input, Shape, Shapes, Shared, Unfit, Value, can_broadcast, same_contents, trailing

MAX_ELEMENTS = 2048
MAX_RANK = 6
_SYMBOLS = {"N": (2, 3), "M": (3, 5), "K": (4, 2), "L": (1, 4), "S": (5, 1), "Z": (0, 2)}
_SPECIAL = (np.nan, np.inf, -np.inf, -0.0, 0.0, 1e-40, 3e38)


class Draw:
    """One scope: the main graph, a body, or a function."""

    def __init__(self, shared: Shared, outer: Draw | None = None, *, is_function: bool = False) -> None:
        self.shared = shared
        self.rng = shared.rng
        self.opset = shared.opset
        self.outer = outer
        self.is_function = is_function
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []
        self.pool: list[Value] = [] if outer is None or is_function else list(outer.pool)
        self.constants: list[Value] = []

    # -- choices ---------------------------------------------------------------------------------------------------

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def pick(self, options: Sequence[Any]) -> Any:
        if not len(options):
            raise Unfit("nothing to choose from")
        return options[int(self.rng.integers(len(options)))]

    def integer(self, low: int, high: int) -> int:
        """low <= result < high"""
        if high <= low:
            raise Unfit("an empty range")
        return int(self.rng.integers(low, high))

    def some(self, items: Sequence[Any], low: int = 1, high: int | None = None) -> list[Any]:
        """Some of the items in their order."""
        count = self.integer(low, (len(items) if high is None else min(high, len(items))) + 1)
        return [items[i] for i in sorted(self.rng.choice(len(items), count, replace=False))]

    def axis(self, x: Value, low_rank: int = 1) -> int:
        if x.rank < low_rank:
            raise Unfit("no axis")
        return self.integer(0, x.rank)

    def spelled(self, axis: int, rank: int) -> int:
        """The axis counted from either end."""
        return axis - rank if self.chance(0.35) else axis

    def name(self, prefix: str = "v") -> str:
        self.shared.counter += 1
        return f"{prefix}{self.shared.counter}"

    # -- nodes -----------------------------------------------------------------------------------------------------

    def node(
        self,
        op_type: str,
        inputs: Sequence[Value | None],
        outputs: Sequence[tuple[int, Shapes] | None],
        *,
        domain: str = "",
        sequence: bool = False,
        checked: bool = True,
        **attributes: Any,
    ) -> list[Value]:
        """Add a node; an output None is left out. Raises Unfit where the runtime has no kernel or sizes explode."""
        taken = tuple(0 if v is None or v.is_sequence else v.dtype for v in inputs)
        given = tuple(0 if o is None or sequence else o[0] for o in outputs)
        if checked and not domain and not supported(op_type, self.opset, taken, given):
            raise Unfit(f"no kernel for {op_type}")
        for made in outputs:
            for shape in made[1] if made is not None else ():
                if int(np.prod(shape)) > MAX_ELEMENTS or len(shape) > MAX_RANK or min(shape, default=0) < 0:
                    raise Unfit("too large")
        names = [self.name() if o is not None else "" for o in outputs]
        while names and not names[-1]:
            names.pop()
        operands = ["" if v is None else v.name for v in inputs]
        while operands and not operands[-1]:
            operands.pop()
        kept = {k: v for k, v in attributes.items() if v is not None}
        node = helper.make_node(op_type, operands, names, domain=domain, **kept)
        if self.chance(0.5):
            node.name = self.name("n")
        self.nodes.append(node)
        values = [Value(n, o[0], o[1], is_sequence=sequence) for n, o in zip(names, outputs, strict=False) if o]
        self.pool += values
        return values

    def same(self, op_type: str, inputs: Sequence[Value | None], dtype: int | None = None, **attributes: Any) -> Value:
        """A node whose only output has the shape of its first input."""
        x = inputs[0]
        if x is None:
            raise Unfit("no operand")
        return self.node(op_type, inputs, [(dtype or x.dtype, x.shapes)], **attributes)[0]

    # -- constants -------------------------------------------------------------------------------------------------

    def constant(self, array: np.ndarray, *, plain: bool = False) -> Value:
        """A constant: a shared one of the same contents, an initializer, or a Constant node."""
        dtype = helper.np_dtype_to_tensor_dtype(array.dtype) if array.dtype != object else STRING
        scope = self
        while scope.outer is not None and not scope.is_function and self.chance(0.5):
            scope = scope.outer
        for other in scope.constants:
            known = other.array
            if known is not None and same_contents(known, array) and self.chance(0.6):
                return other
        shape = tuple(array.shape)
        value = Value(self.name("c"), dtype, (shape, shape), array)
        tensor = onnx.numpy_helper.from_array(array, value.name)
        if scope.is_function or (not plain and self.chance(0.2)):
            scope.nodes.insert(0, helper.make_node("Constant", [], [value.name], value=tensor))
        else:
            scope.initializers.append(tensor)
        scope.constants.append(value)
        return value

    def ints(self, values: Sequence[int] | np.ndarray | int, dtype: int = INT64) -> Value:
        """Integers as an operand; now and then computed, of constants."""
        value = self.constant(np.array(values, dtype=numpy_type(dtype)))
        if self.chance(0.04):
            value = self.node("Identity", [value], [(value.dtype, value.shapes)])[0]
            self.pool.remove(value)
        return value

    def weight(self, dtype: int, shape: Shape, *, positive: bool = False) -> Value:
        return self.constant(self.numbers(dtype, shape, positive=positive, special=0.0 if positive else 0.03))

    def numbers(self, dtype: int, shape: Shape, *, positive: bool = False, special: float = 0.0) -> np.ndarray:
        """Random contents of a type; `special` is the chance of NaN, infinities and zeros of both signs."""
        if dtype == STRING:
            return self.rng.choice(np.array(["", "a", "bc", "ä"], dtype=object), size=shape)
        if dtype == BOOL:
            return self.rng.random(shape) < 0.5
        if dtype in INTEGERS:
            low = 0 if positive or numpy_type(dtype).kind == "u" else -4
            return self.rng.integers(low + positive, 9, size=shape).astype(numpy_type(dtype))
        array = np.asarray(self.rng.random(shape) + 0.5 if positive else self.rng.standard_normal(shape))
        if array.size and self.chance(special):
            places = self.rng.integers(array.size, size=self.integer(1, 3))
            array.reshape(-1)[places] = self.pick(_SPECIAL)
        with np.errstate(over="ignore", invalid="ignore"):
            return array.astype(numpy_type(dtype))

    # -- operands --------------------------------------------------------------------------------------------------

    def input(
        self,
        dtype: int,
        shapes: Shapes | None = None,
        *,
        ranks: Sequence[int] = (0, 1, 2, 2, 3, 3, 4),
        domain: tuple[int, int] | None = None,
    ) -> Value:
        """A new graph input; inside a function or when there are many, a constant."""
        dims: list[str | int | None] = []
        if shapes is None:
            for _ in range(self.pick(ranks)):
                dims.append(self._dim())
            shapes = tuple(  # type: ignore[assignment]
                tuple(self.shared.symbols[d][i] if isinstance(d, str) else int(d or 0) for d in dims) for i in (0, 1)
            )
        else:
            dims = self.dims_of(shapes)
        assert shapes is not None
        if self.is_function or len(self.shared.inputs) > 8 or self._in_function():
            if shapes[0] != shapes[1]:
                raise Unfit("no more inputs")
            if domain is not None:
                return self.constant(self.rng.integers(*domain, size=shapes[0]).astype(numpy_type(dtype)))
            return self.weight(dtype, shapes[0])
        value = Value(self.name("x"), dtype, shapes)
        self.shared.inputs.append(Input(value, dims, domain=domain))
        self.main.pool.append(value)
        if self.main is not self:
            self.pool.append(value)
        return value

    def _dim(self) -> str | int:
        if self.chance(0.35):
            name = self.pick("NNNMMMKKLLSSZ") if self.chance(0.3) else self.pick("NMKLS")
            self.shared.symbols[name] = _SYMBOLS[name]
            return str(name)
        return int(self.pick((1, 1, 2, 2, 3, 3, 4, 4, 5, 6, 0))) if self.chance(0.4) else int(self.pick((1, 2, 3, 4)))

    def dims_of(self, shapes: Shapes) -> list[str | int | None]:
        """How to declare these sizes: known symbols where they fit, new ones otherwise."""
        dims: list[str | int | None] = []
        for pair in zip(*shapes, strict=True):
            fitting = [n for n, sizes in _SYMBOLS.items() if sizes == pair]
            if pair[0] == pair[1]:
                dims.append(int(pair[0]))
            elif fitting:
                self.shared.symbols[fitting[0]] = _SYMBOLS[fitting[0]]
                dims.append(fitting[0])
            else:
                dims.append(f"d{pair[0]}_{pair[1]}")
        return dims

    @property
    def main(self) -> Draw:
        """The outermost scope."""
        return self if self.outer is None else self.outer.main

    def _in_function(self) -> bool:
        return self.is_function or (self.outer is not None and self.outer._in_function())

    def value(
        self,
        dtypes: Sequence[int],
        *,
        ranks: Sequence[int] = (0, 1, 2, 3, 4, 5, 6),
        where: Callable[[Value], bool] = lambda v: True,
        make: Shapes | None = None,
    ) -> Value:
        """A value of one of these types and ranks: a recent one, one converted, or a new input."""
        fitting = [v for v in self.pool if not v.is_sequence and v.rank in ranks and where(v)]
        typed = [v for v in fitting if v.dtype in dtypes]
        if typed and self.chance(0.93):
            return self._recent(typed)
        if not dtypes:
            raise Unfit("no element type")
        dtype = FLOAT if FLOAT in dtypes and self.chance(0.5) else self.pick(dtypes)
        castable = [v for v in fitting if STRING not in (v.dtype, dtype)]
        if castable and self.chance(0.6):
            return self.same("Cast", [self._recent(castable)], dtype, to=dtype)
        if make is None and not any(r <= 4 for r in ranks):
            shapes = tuple(int(self.pick((1, 1, 2, 3))) for _ in range(self.pick(ranks)))
            make = (shapes, shapes)
        for _ in range(6):
            found = self.input(dtype, make, ranks=[r for r in ranks if r <= 4])
            if where(found):
                return found
            if make is not None:
                break
        raise Unfit("no fitting value")

    def _recent(self, values: list[Value]) -> Value:
        back = (
            min(int(self.rng.geometric(0.25)), len(values)) if self.chance(0.75) else self.integer(1, len(values) + 1)
        )
        return values[-back]

    def operand(self, op_type: str, *, among: Sequence[int] = DTYPES, **more: Any) -> Value:
        """A first operand for the operator, of any type that it has a kernel for."""
        return self.value([t for t in input_types(op_type, self.opset) if t in among], **more)

    def partner(self, x: Value, dtype: int | None = None, *, positive: bool = False) -> Value:
        """A second operand that broadcasts with the first, both ways."""
        dtype = dtype or x.dtype
        fitting = [v for v in self.pool if v.dtype == dtype and not v.is_sequence and can_broadcast(v, x)]
        if fitting and self.chance(0.5) and not positive:
            return self._recent(fitting)
        shape = self.pick(((), (1,), *[s for s in (trailing(x, self.integer(0, x.rank + 1)),) if s is not None]))
        if self.chance(0.15):
            shape = (1,) * self.integer(0, min(x.rank + 2, MAX_RANK))
        if self.chance(0.4) and dtype in (*FLOATS, *INTEGERS):
            number = self.pick((0, 1, 1, -1, 2) if dtype in INTEGERS else (0.0, -0.0, 1.0, 1.0, -1.0, 0.5))
            number = abs(number) + positive if positive or numpy_type(dtype).kind == "u" else number
            return self.constant(np.full(shape, number).astype(numpy_type(dtype)))
        return self.weight(dtype, shape, positive=positive)

    def like(self, x: Value, dtype: int | None = None) -> Value:
        """A value of the same shapes: another one, or a new one."""
        dtype = dtype or x.dtype
        fitting = [v for v in self.pool if v.dtype == dtype and v.shapes == x.shapes and not v.is_sequence]
        if fitting and self.chance(0.7):
            return self._recent(fitting)
        if x.is_static and self.chance(0.5):
            return self.weight(dtype, x.shape)
        if x.dtype != dtype and STRING not in (x.dtype, dtype):
            return self.same("Cast", [x], dtype, to=dtype)
        return self.input(dtype, x.shapes)

    # -- transactions ----------------------------------------------------------------------------------------------

    def attempt(self, emit: Callable[[Draw], None]) -> bool:
        """Run an emitter; what it added stays only when it succeeds."""
        scopes: list[Draw] = [self]
        while scopes[-1].outer is not None:
            scopes.append(scopes[-1].outer)
        saved = [(s, list(s.nodes), list(s.initializers), list(s.pool), list(s.constants)) for s in scopes]
        inputs, functions = list(self.shared.inputs), list(self.shared.functions)
        try:
            emit(self)
        except Unfit:
            for scope, nodes, initializers, pool, constants in saved:
                scope.nodes, scope.initializers, scope.pool, scope.constants = nodes, initializers, pool, constants
            self.shared.inputs, self.shared.functions = inputs, functions
            return False
        return True
