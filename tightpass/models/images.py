"""A file with an image -> pixels as a model expects them. Pillow is imported here alone, when an image is asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from tightpass import doors
from tightpass.errors import InputError
from tightpass.models.signal import Signal

CONFIG = "preprocessor_config.json"
MODES = {1: "L", 3: "RGB"}
"""How Pillow calls images of so many channels."""


def pixels_of(path: str, signal: Signal, location: str | None) -> tuple[torch.Tensor, str]:
    """Pixels (channels, height, width) of an image in a file, and what was done to it, in words.

    location   directory or Hub id of the model: its own image processor is taken if it has one; else the image is resized to the
               size that the model expects, and scaled by the mean and spread that it says, or to [-1, 1]

    Raises InputError for a file that cannot be read as an image.
    """
    image = _opened(path, signal)
    what = f"image {Path(path).name} ({image.width} × {image.height})"
    processor = _processor(location)
    if processor is not None:
        return _processed(processor, image, path), f"{what} by the model's own {type(processor).__name__}"
    height, width = signal.shape[1:]
    mean, std, scaled = _statistics(location, signal.shape[0])
    resized = image.resize((width, height), _pillow().Resampling.BICUBIC)
    levels = torch.frombuffer(bytearray(resized.tobytes()), dtype=torch.uint8).view(height, width, -1).double() / 255
    return ((levels - mean) / std).permute(2, 0, 1), f"{what} resized to {width} × {height}, {scaled}"


def _pillow() -> Any:
    """Raises InputError where it is not installed."""
    try:
        from PIL import Image
    except ImportError:
        raise InputError("reading an image needs Pillow, which is not here: pip install 'tightpass[vision]'") from None
    return Image


def _opened(path: str, signal: Signal) -> Any:
    """As a model of so many channels sees it."""
    pillow, file, channels = _pillow(), doors.path("image", path), signal.shape[0]
    if channels not in MODES:
        raise InputError(f"the model reads images of {channels} channels, files have 1 or 3; give pixel_values")
    if not file.is_file():
        raise InputError(f"image {doors.shown(path)}: there is no such file")
    try:
        with pillow.open(file) as image:
            return image.convert(MODES[channels])
    except (OSError, ValueError, SyntaxError, pillow.DecompressionBombError) as error:
        raise InputError(f"{file} cannot be read as an image: {' '.join(str(error).split())[:200]}") from error


def _processor(location: str | None) -> Any | None:
    """The model's own; None where it has none that works here, as where it needs torchvision."""
    if location is None or (Path(location).is_dir() and not (Path(location) / CONFIG).is_file()):
        return None
    from transformers import AutoImageProcessor

    try:
        return AutoImageProcessor.from_pretrained(location, trust_remote_code=False)
    except Exception:  # it lets through what any of its parts raises; what was done instead is said
        return None


def _processed(processor: Any, image: Any, path: str) -> torch.Tensor:
    try:
        values: torch.Tensor = processor(images=image, return_tensors="pt")["pixel_values"][0]
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{type(processor).__name__} of the model cannot take {path}: {reason}") from error
    return values


def _statistics(location: str | None, channels: int) -> tuple[torch.Tensor, torch.Tensor, str]:
    """Mean and spread of each channel, and where they come from."""
    half = torch.full((channels,), 0.5, dtype=torch.float64)
    file = Path(location or "") / CONFIG
    if location is None or not file.is_file():
        return half, half, "scaled to [-1, 1]"
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
        mean, std = (torch.tensor(said[name], dtype=torch.float64) for name in ("image_mean", "image_std"))
    except (OSError, ValueError, KeyError, TypeError):
        return half, half, f"scaled to [-1, 1] (no mean in {CONFIG})"
    if mean.shape != half.shape or std.shape != half.shape or not bool((std > 0).all()):
        raise InputError(f"{file}: image_mean and image_std must be {channels} numbers each, the latter above 0")
    return mean, std, f"scaled by the mean and spread of {CONFIG}"
