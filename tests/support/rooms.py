"""The rooms of the package, and the rank of each: a module imports lower ranks and its own room."""

from __future__ import annotations

RANK = {
    "core": 0,
    "config": 1,
    "hardware": 1,
    "images": 1,
    "models": 2,
    "engine": 3,
    "training": 3,
    "bench": 4,
    "caption": 4,
    "chat": 4,
    "completion": 4,
    "demo": 4,
    "selfcheck": 4,
    "server": 4,
    "ui": 5,
    "cli": 6,
}
MODEL_ROOMS = {"families": 0, "kernels": 0, "hub": 1, "planning": 2, "loading": 3}
