"""Thin modules around those of the source libraries: named tensors in, one tensor out."""

from __future__ import annotations

from typing import Any

import torch


class _Wrapper(torch.nn.Module):
    """Holds `model`; `field` names the part of its result that is given out, None where that is a tensor already."""

    def __init__(self, model: torch.nn.Module, field: str | None = None) -> None:
        super().__init__()
        self.model = model
        self._field = field

    def pick(self, result: Any) -> Any:
        return result if self._field is None else getattr(result, self._field)


class Text(_Wrapper):
    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return self.pick(self.model(input_ids=input_ids, attention_mask=attention_mask))


class CausalText(_Wrapper):
    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return self.pick(self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False))


class MasklessCausalText(_Wrapper):
    def forward(self, input_ids: torch.Tensor) -> Any:
        return self.pick(self.model(input_ids=input_ids, use_cache=False))


class TextToText(_Wrapper):
    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, decoder_input_ids: torch.Tensor) -> Any:
        return self.pick(
            self.model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                decoder_input_ids=decoder_input_ids,
                use_cache=False,
            )
        )


class Image(_Wrapper):
    def forward(self, pixel_values: torch.Tensor) -> Any:
        return self.pick(self.model(pixel_values))


class ImageAndText(_Wrapper):
    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, pixel_values: torch.Tensor) -> Any:
        return self.pick(self.model(input_ids=input_ids, pixel_values=pixel_values, attention_mask=attention_mask))


class Wave(_Wrapper):
    def forward(self, input_values: torch.Tensor) -> Any:
        return self.pick(self.model(input_values))


class SpeechToText(_Wrapper):
    def forward(self, input_features: torch.Tensor, decoder_input_ids: torch.Tensor) -> Any:
        return self.pick(
            self.model(input_features=input_features, decoder_input_ids=decoder_input_ids, use_cache=False)
        )
