"""FX rules of LSTM, GRU and RNN."""

from __future__ import annotations

from opgraft.ir.fx import ops_recurrent as ops
from opgraft.ir.fx.call import Call, Outputs, Rule

_DEFAULTS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
# Where torch's gates are among those of ONNX: input, forget, cell, output; reset, update, new.
_ORDER = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
_N_STATES = {"LSTM": 2, "GRU": 1, "RNN": 1}


def recurrent(call: Call) -> Outputs:
    """Inputs: x, weight, recurrence, bias, lengths, first states, peepholes."""
    kind = call.source.op_type
    direction = call.text_attribute("direction", "forward")
    reverse = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[direction]
    activations = _activations(call, kind, len(reverse))
    initial = [call.optional(5 + i) for i in range(_N_STATES[kind])]
    tensors = (call.tensor(0), call.tensor(1), call.tensor(2), call.optional(3))
    batch_first = bool(call.int_attribute("layout", 0))
    if _is_torch_layer(call, kind, direction, activations):
        made = call.emit(ops.torch_layer, kind, *tensors, initial, order=list(_ORDER[kind]), batch_first=batch_first)
    else:
        made = call.emit(
            ops.recurrent,
            *(kind, *tensors, call.optional(4), initial, call.optional(7)),
            activations=activations,
            reverse=reverse,
            clip=call.float_attribute("clip", 0.0) if "clip" in call.attributes else None,
            coupled=bool(call.int_attribute("input_forget", 0)),
            linear_before_reset=bool(call.int_attribute("linear_before_reset", 0)),
            batch_first=batch_first,
        )
    return call.outputs_of(made, 1 + _N_STATES[kind])


def _activations(call: Call, kind: str, directions: int) -> list[tuple[str, float | None, float | None]]:
    given = call.attributes.get("activations")
    names = list(given.as_strings()) if given is not None else list(_DEFAULTS[kind]) * directions
    alphas, betas = (
        list(call.floats_attribute("activation_alpha") or ()),
        list(call.floats_attribute("activation_beta") or ()),
    )
    found = []
    for name in names:
        takes_alpha, takes_beta = _PARAMETERS.get(name, (False, False))
        alpha = alphas.pop(0) if takes_alpha and alphas else None
        beta = betas.pop(0) if takes_beta and betas else None
        found.append((name, alpha, beta))
    return found


_PARAMETERS = {
    "Affine": (True, True),
    "Elu": (True, False),
    "HardSigmoid": (True, True),
    "LeakyRelu": (True, False),
    "ScaledTanh": (True, True),
    "ThresholdedRelu": (True, False),
}


def _is_torch_layer(
    call: Call, kind: str, direction: str, activations: list[tuple[str, float | None, float | None]]
) -> bool:
    names = [name for name, _, _ in activations]
    plain = names == list(_DEFAULTS[kind]) * (2 if direction == "bidirectional" else 1)
    special = call.has(4) or call.has(7) or "clip" in call.attributes or call.int_attribute("input_forget", 0)
    resets = kind != "GRU" or bool(call.int_attribute("linear_before_reset", 0))
    return plain and not special and resets and direction != "reverse"


RECURRENT_RULES: dict[str, Rule] = {"GRU": recurrent, "LSTM": recurrent, "RNN": recurrent}
