"""Inputs of the usual kinds, drawn for any binding of the dims."""

from __future__ import annotations

from collections.abc import Callable

import torch

from architectures.architecture import Binding, Inputs

Draw = Callable[[Binding, torch.Generator], Inputs]


def token_ids(binding: Binding, generator: torch.Generator, vocabulary: int, length: str = "length") -> torch.Tensor:
    """Ids [B, T]; none of the first four, which configs use as special tokens."""
    return torch.randint(4, vocabulary, (binding["batch"], binding[length]), generator=generator)


def padding_mask(binding: Binding, generator: torch.Generator, length: str = "length") -> torch.Tensor:
    """Ones and zeros [B, T], padded on the right: the first row is full, the others hide one or two tokens.

    No more, so that within a window of three every token still sees one that is no padding.
    """
    tokens = binding[length]
    hidden = torch.randint(1, 3, (binding["batch"],), generator=generator)
    hidden[0] = 0
    return (torch.arange(tokens) < tokens - hidden[:, None]).long()


def text(vocabulary: int, masked: bool = True) -> Draw:
    def draw(binding: Binding, generator: torch.Generator) -> Inputs:
        inputs = {"input_ids": token_ids(binding, generator, vocabulary)}
        if masked:
            inputs["attention_mask"] = padding_mask(binding, generator)
        return inputs

    return draw


def text_pair(vocabulary: int) -> Draw:
    """For encoder and decoder: two lengths."""

    def draw(binding: Binding, generator: torch.Generator) -> Inputs:
        return {
            "input_ids": token_ids(binding, generator, vocabulary, "source"),
            "attention_mask": padding_mask(binding, generator, "source"),
            "decoder_input_ids": token_ids(binding, generator, vocabulary, "target"),
        }

    return draw


def image(channels: int, height: int | None = None, width: int | None = None, name: str = "pixel_values") -> Draw:
    """Normal noise [B, C, rows, columns]; sizes that are None are dims "rows" and "columns"."""

    def draw(binding: Binding, generator: torch.Generator) -> Inputs:
        rows = binding["rows"] if height is None else height
        columns = binding["columns"] if width is None else width
        return {name: torch.randn(binding["batch"], channels, rows, columns, generator=generator)}

    return draw


def wave(name: str, channels: int | None = None) -> Draw:
    """Normal noise [B, samples] or [B, C, samples]."""

    def draw(binding: Binding, generator: torch.Generator) -> Inputs:
        shape = (binding["batch"], *(() if channels is None else (channels,)), binding["samples"])
        return {name: torch.randn(shape, generator=generator)}

    return draw


def joined(*draws: Draw) -> Draw:
    def draw(binding: Binding, generator: torch.Generator) -> Inputs:
        inputs: Inputs = {}
        for part in draws:
            inputs.update(part(binding, generator))
        return inputs

    return draw


TEXT_AXES = {0: "batch", 1: "length"}
SOURCE_AXES = {0: "batch", 1: "source"}
TARGET_AXES = {0: "batch", 1: "target"}
IMAGE_AXES = {0: "batch"}
FREE_IMAGE_AXES = {0: "batch", 2: "rows", 3: "columns"}
