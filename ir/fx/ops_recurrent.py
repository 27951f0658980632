"""What emitted modules call for LSTM, GRU and RNN with anything that torch's own layers do not have.

Peepholes, clipped gates, coupled gates, other activations, sequences of several lengths. The loop over time is unrolled
when a module is traced: torch's layers, which the rules prefer, are not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Activation = Callable[[Tensor], Tensor]
State = tuple[Tensor, ...]
Step = Callable[[Tensor, State], State]


def activation(name: str, alpha: float | None, beta: float | None) -> Activation:
    """One of ONNX's activations, with its own defaults."""
    a = (
        {"LeakyRelu": 0.01, "HardSigmoid": 0.2, "Affine": 1.0, "ScaledTanh": 1.0}.get(name, 1.0)
        if alpha is None
        else alpha
    )
    b = {"HardSigmoid": 0.5, "ScaledTanh": 1.0}.get(name, 0.0) if beta is None else beta
    table: dict[str, Activation] = {
        "Relu": torch.relu,
        "Tanh": torch.tanh,
        "Sigmoid": torch.sigmoid,
        "Affine": lambda x: a * x + b,
        "LeakyRelu": lambda x: torch.where(x < 0, a * x, x),
        "ThresholdedRelu": lambda x: torch.where(x >= a, x, 0),
        "ScaledTanh": lambda x: a * torch.tanh(b * x),
        "HardSigmoid": lambda x: torch.clamp(a * x + b, 0, 1),
        "Elu": lambda x: torch.where(x < 0, a * (torch.exp(x) - 1), x),
        "Softsign": lambda x: x / (1 + torch.abs(x)),
        "Softplus": lambda x: torch.logaddexp(x, torch.zeros_like(x)),
    }
    return table[name]


def recurrent(
    kind: str,
    x: Tensor,
    weight: Tensor,
    recurrence: Tensor,
    bias: Tensor | None,
    lengths: Tensor | None,
    initial: Sequence[Tensor | None],
    peephole: Tensor | None,
    *,
    activations: Sequence[tuple[str, float | None, float | None]],
    reverse: Sequence[bool],
    clip: float | None,
    coupled: bool,
    linear_before_reset: bool,
    batch_first: bool,
) -> tuple[Tensor, ...]:
    """All states [T, D, B, H] and the last ones [D, B, H], for D directions."""
    if batch_first:
        x = x.transpose(0, 1)
        initial = [None if s is None else s.transpose(0, 1) for s in initial]
    per_direction = len(activations) // len(reverse)
    outputs, finals = [], []
    for d, backwards in enumerate(reverse):
        functions = [activation(*a) for a in activations[d * per_direction : (d + 1) * per_direction]]
        own_bias = None if bias is None else bias[d]
        own_peephole = None if peephole is None else peephole[d]
        step = _STEPS[kind](
            weight[d], recurrence[d], own_bias, own_peephole, functions, clip, coupled or linear_before_reset
        )
        blank = torch.zeros([x.shape[1], recurrence.shape[2]], dtype=x.dtype, device=x.device)
        state = tuple(blank if s is None else s[d] for s in initial)
        states, final = _run(step, x, state, lengths, backwards)
        outputs.append(states)
        finals.append(final)
    every = torch.stack(outputs, 1)
    last = [torch.stack([f[i] for f in finals], 0) for i in range(len(initial))]
    if batch_first:
        return every.permute(2, 0, 1, 3), *(s.transpose(0, 1) for s in last)
    return every, *last


def _run(step: Step, x: Tensor, state: State, lengths: Tensor | None, backwards: bool) -> tuple[Tensor, State]:
    """Over time; beyond a sequence's own length the state stays and the output is zero."""
    outputs = []
    times = range(x.shape[0])
    for t in reversed(times) if backwards else times:
        new = step(x[t], state)
        if lengths is not None:
            inside = (lengths > t).reshape([-1, 1])
            new = tuple(torch.where(inside, n, o) for n, o in zip(new, state, strict=True))
            outputs.append(torch.where(inside, new[0], 0))
        else:
            outputs.append(new[0])
        state = new
    return torch.stack(outputs[::-1] if backwards else outputs), state


def _clipped(x: Tensor, clip: float | None) -> Tensor:
    return x if clip is None else torch.clamp(x, -clip, clip)


def _lstm_step(
    weight: Tensor,
    recurrence: Tensor,
    bias: Tensor | None,
    peephole: Tensor | None,
    functions: Sequence[Activation],
    clip: float | None,
    coupled: bool,
) -> Step:
    """Gates in the order input, output, forget, cell."""
    hidden = recurrence.shape[1]
    f, g, h = functions
    peeps = peephole.split(hidden) if peephole is not None else None

    def step(x: Tensor, state: State) -> State:
        previous, cell = state
        total = x @ weight.t() + previous @ recurrence.t()
        if bias is not None:
            total = total + bias[: 4 * hidden] + bias[4 * hidden :]
        i, o, forget, c = total.split(hidden, -1)
        if peeps is not None:
            i, forget = i + peeps[0] * cell, forget + peeps[2] * cell
        i = f(_clipped(i, clip))
        forget = 1 - i if coupled else f(_clipped(forget, clip))
        cell = forget * cell + i * g(_clipped(c, clip))
        if peeps is not None:
            o = o + peeps[1] * cell
        return f(_clipped(o, clip)) * h(cell), cell

    return step


def _gru_step(
    weight: Tensor,
    recurrence: Tensor,
    bias: Tensor | None,
    peephole: Tensor | None,
    functions: Sequence[Activation],
    clip: float | None,
    linear_before_reset: bool,
) -> Step:
    """Gates in the order update, reset, hidden."""
    hidden = recurrence.shape[1]
    f, g = functions
    w = weight.split(hidden)
    r = recurrence.split(hidden)
    b = bias.split(hidden) if bias is not None else None

    def step(x: Tensor, state: State) -> State:
        (previous,) = state
        gates = [x @ w[i].t() + (b[i] if b is not None else 0) for i in range(3)]
        update, reset = (
            f(_clipped(gates[i] + previous @ r[i].t() + (b[3 + i] if b is not None else 0), clip)) for i in range(2)
        )
        if linear_before_reset:
            inner = reset * (previous @ r[2].t() + (b[5] if b is not None else 0))
        else:
            inner = (reset * previous) @ r[2].t() + (b[5] if b is not None else 0)
        candidate = g(_clipped(gates[2] + inner, clip))
        return ((1 - update) * candidate + update * previous,)

    return step


def _rnn_step(
    weight: Tensor,
    recurrence: Tensor,
    bias: Tensor | None,
    peephole: Tensor | None,
    functions: Sequence[Activation],
    clip: float | None,
    unused: bool,
) -> Step:
    hidden = recurrence.shape[1]

    def step(x: Tensor, state: State) -> State:
        total = x @ weight.t() + state[0] @ recurrence.t()
        if bias is not None:
            total = total + bias[:hidden] + bias[hidden:]
        return (functions[0](_clipped(total, clip)),)

    return step


_STEPS: dict[str, Callable[..., Step]] = {"LSTM": _lstm_step, "GRU": _gru_step, "RNN": _rnn_step}


# -- torch's own layers ------------------------------------------------------------------------------------------------


def torch_layer(
    kind: str,
    x: Tensor,
    weight: Tensor,
    recurrence: Tensor,
    bias: Tensor | None,
    initial: Sequence[Tensor | None],
    *,
    order: Sequence[int],
    batch_first: bool,
) -> tuple[Tensor, ...]:
    """One layer forward or in both directions; `order` is where torch's gates are among ONNX's."""
    if batch_first:
        x = x.transpose(0, 1)
        initial = [None if s is None else s.transpose(0, 1) for s in initial]
    directions, hidden = weight.shape[0], recurrence.shape[2]
    parameters = []
    for d in range(directions):
        parameters += [_reordered(weight[d], hidden, order), _reordered(recurrence[d], hidden, order)]
        if bias is not None:
            half = len(order) * hidden
            parameters += [_reordered(bias[d, :half], hidden, order), _reordered(bias[d, half:], hidden, order)]
    blank = torch.zeros([directions, x.shape[1], hidden], dtype=x.dtype, device=x.device)
    # cuDNN takes no other.
    states = [blank if s is None else s.contiguous() for s in initial]
    options = (bias is not None, 1, 0.0, False, directions == 2, False)
    if kind == "LSTM":
        made = torch.lstm(x, states, parameters, *options)
    else:
        made = {"GRU": torch.gru, "RNN": torch.rnn_tanh}[kind](x, states[0], parameters, *options)
    every = made[0].unflatten(2, [directions, hidden]).transpose(1, 2)
    if batch_first:
        return every.permute(2, 0, 1, 3), *(s.transpose(0, 1) for s in made[1:])
    return every, *made[1:]


def _reordered(rows: Tensor, hidden: int, order: Sequence[int]) -> Tensor:
    if list(order) == sorted(order):
        return rows
    parts = rows.split(hidden)
    return torch.cat([parts[i] for i in order])
