"""What emitted modules call for spectra, complex numbers as a last dim of two, and windows."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def _complex(x: Tensor) -> Tensor:
    if x.shape[-1] == 1:
        return torch.complex(x[..., 0], torch.zeros_like(x[..., 0]))
    return torch.view_as_complex(x.contiguous())


def dft(x: Tensor, length: Any, axis: int, inverse: bool, one_sided: bool) -> Tensor:
    """One-sided leaves out what is conjugate: in the result, or in the input of an inverse transform, whose result is
    real."""
    axis = axis % x.ndim
    signal = _complex(x)
    if inverse and one_sided:
        count = 2 * (x.shape[axis] - 1) if length is None else length
        return torch.fft.irfft(signal, n=count, dim=axis).unsqueeze(-1)
    made = (torch.fft.ifft if inverse else torch.fft.fft)(signal, n=length, dim=axis)
    if one_sided:
        made = aten.slice.Tensor(made, axis, 0, made.shape[axis] // 2 + 1)
    return torch.view_as_real(made)


def stft(x: Tensor, step: Any, window: Tensor | None, length: Any, one_sided: bool) -> Tensor:
    """[B, T, 1 or 2] -> [B, frames, frequencies, 2]"""
    if length is None:
        length = x.shape[-2] if window is None else window.shape[0]
    signal = _complex(x) if x.shape[-1] == 2 else x[..., 0]
    frames = signal.unfold(-1, length, step)
    if window is not None:
        frames = frames * window
    made = torch.fft.fft(frames, dim=-1)
    if one_sided:
        made = made[..., : length // 2 + 1]
    return torch.view_as_real(made)


def _angles(size: Any, periodic: bool, device: torch.device | None) -> Tensor:
    return torch.arange(size, dtype=torch.float64, device=device) * (2 * math.pi / (size if periodic else size - 1))


def hann(size: Any, periodic: bool, dtype: torch.dtype, device: torch.device | None) -> Tensor:
    return (0.5 - 0.5 * torch.cos(_angles(size, periodic, device))).to(dtype)


def hamming(size: Any, periodic: bool, dtype: torch.dtype, device: torch.device | None) -> Tensor:
    return (25.0 / 46.0 - 21.0 / 46.0 * torch.cos(_angles(size, periodic, device))).to(dtype)


def blackman(size: Any, periodic: bool, dtype: torch.dtype, device: torch.device | None) -> Tensor:
    angles = _angles(size, periodic, device)
    return (0.42 - 0.5 * torch.cos(angles) + 0.08 * torch.cos(2 * angles)).to(dtype)
