"""Audio codecs: samples [B, 1, S] through an encoder, residual vector quantization, and back to samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import transformers

from architectures.architecture import Built, Sizes, architecture, preset_table
from architectures.inputs import wave
from architectures.presets import TEXT
from architectures.truth import AttentionRule

# Codecs have their own widths; only the batch and the number of frames vary.
_SIZES = preset_table(
    TEXT["default"],
    replace(TEXT["colliding_heads"], length=(4,)),
    replace(TEXT["colliding_channels"], length=(16,)),
)


class Codec(torch.nn.Module):
    """`code` maps the model and samples to what is given out."""

    def __init__(self, model: torch.nn.Module, code: Callable[[Any, torch.Tensor], Any]) -> None:
        super().__init__()
        self.model = model
        self._code = code

    def forward(self, input_values: torch.Tensor) -> Any:
        return self._code(self.model, input_values)


class FixedPadding:
    """Paddings as numbers, from the first run: the library has tensors, which exporters cannot use as sizes."""

    def __init__(self, pad: Callable[..., torch.Tensor]) -> None:
        self._pad = pad
        self._known: dict[int, tuple[int, ...]] = {}

    def __call__(self, states: torch.Tensor, paddings: tuple[Any, Any], mode: str = "zero", value: float = 0.0) -> Any:
        length = states.shape[-1]
        if length not in self._known:
            self._known[length] = tuple(int(size) for size in paddings)
        return self._pad(states, self._known[length], mode=mode, value=value)


def _built(module: torch.nn.Module, sizes: Sizes, hop: int, rules: tuple[AttentionRule, ...] = ()) -> Built:
    frames = sizes.length[:1]  # paddings depend on the length, which is therefore fixed
    for part in module.modules():
        if hasattr(part, "_pad1d"):
            part._pad1d = FixedPadding(part._pad1d)
    with torch.no_grad():
        module(torch.zeros(1, 1, hop * frames[0]))
    return Built(
        module=module,
        draw=wave("input_values", channels=1),
        dims={"batch": sizes.batch, "samples": tuple(hop * count for count in frames)},
        axes={"input_values": {0: "batch", 2: "samples"}},
        attention=rules,
        layers=sizes.layers if rules else 0,
    )


def _encodec_code(model: Any, samples: torch.Tensor) -> torch.Tensor:
    states = model.encoder(samples)
    codes = model.quantizer.encode(states, bandwidth=None)
    return model.decoder(model.quantizer.decode(codes))


@architecture("encodec", "codec", _SIZES)
def encodec(sizes: Sizes, implementation: str) -> Built:
    """Causal convolutions with reflected padding, an LSTM, and codebooks by distance."""
    config = transformers.EncodecConfig(
        hidden_size=sizes.attention_width, codebook_dim=sizes.attention_width, num_filters=6,
        upsampling_ratios=[2, 2], codebook_size=32, num_lstm_layers=1, target_bandwidths=[60.0],
        sampling_rate=24_000,
    )  # fmt: skip
    return _built(Codec(transformers.EncodecModel(config), _encodec_code), sizes, hop=4)


def _dac_code(model: Any, samples: torch.Tensor) -> torch.Tensor:
    return model.decoder(model.quantizer(model.encoder(samples))[0])


@architecture("dac", "codec", _SIZES)
def dac(sizes: Sizes, implementation: str) -> Built:
    """Periodic activations; codes are looked up in a space of few channels, both sides normalised."""
    config = transformers.DacConfig(
        encoder_hidden_size=6, downsampling_ratios=[2, 2], decoder_hidden_size=24, n_codebooks=3, codebook_size=32,
        codebook_dim=4,
    )  # fmt: skip
    return _built(Codec(transformers.DacModel(config), _dac_code), sizes, hop=4)


def _mimi_code(model: Any, samples: torch.Tensor) -> torch.Tensor:
    latents = model.encoder(samples).latents
    return model.decoder(model.quantizer.decode(model.quantizer.encode(latents, 3).transpose(0, 1))).audio_values


@architecture("mimi", "codec", _SIZES)
def mimi(sizes: Sizes, implementation: str) -> Built:
    """Causal convolutions, and causal transformers within a window on both sides of the codes."""
    config = transformers.MimiConfig(
        hidden_size=sizes.attention_width, num_filters=6, upsampling_ratios=[2, 2], codebook_size=32,
        codebook_dim=sizes.width, vector_quantization_hidden_dimension=sizes.width, num_quantizers=3,
        num_hidden_layers=sizes.layers, intermediate_size=sizes.mlp, num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.heads, head_dim=sizes.head_dim, sliding_window=3,
        upsample_groups=sizes.attention_width, sampling_rate=24_000, use_cache=False,
        attn_implementation=implementation,
    )  # fmt: skip
    rule = AttentionRule("self_attn", sizes.heads, sizes.head_dim, mask=("causal", "window"), rotary=True)
    built = _built(Codec(transformers.MimiModel(config), _mimi_code), sizes, hop=4, rules=(rule,))
    return replace(built, width=(sizes.attention_width,), mlp=(sizes.mlp,), layers=2 * sizes.layers)
