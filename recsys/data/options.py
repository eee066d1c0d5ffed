"""Choices that a training configuration offers and the loader carries out."""

from __future__ import annotations

from typing import Literal

BatchBy = Literal["rows", "targets"]
