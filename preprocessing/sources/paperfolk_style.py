"""Paperfolk in another hand: the same pictures as sepia prints with dark outlines. A style LoRA is trained on them."""

import numpy as np
from jaxtyping import UInt8

_DARK, _LIGHT = np.array([58.0, 34.0, 24.0]), np.array([250.0, 236.0, 206.0])  # ink and old paper
_OUTLINE = 0.4  # how dark a step in colour is drawn


def as_print(pixels: UInt8[np.ndarray, "*n h w 3"]) -> UInt8[np.ndarray, "*n h w 3"]:
    """The pictures as sepia prints: one ink in four tones, and an outline wherever colours meet."""
    color = pixels.astype(np.float32) / 255
    tone = color @ np.array([0.3, 0.59, 0.11], np.float32)
    tone = 0.5 * tone + 0.5 * np.round(3 * tone) / 3  # towards four tones: flat, as a lino cut is
    down = np.abs(np.diff(color, axis=-3, append=color[..., -1:, :, :])).max(-1)
    right = np.abs(np.diff(color, axis=-2, append=color[..., :, -1:, :])).max(-1)
    share = np.clip(0.15 + 0.85 * tone - _OUTLINE * np.maximum(down, right).clip(0, 0.3), 0, 1)[..., None]
    return np.round(_DARK + share * (_LIGHT - _DARK)).astype(np.uint8)
