"""Kinds of parameters of the built-in model and its auxiliary heads, by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import nn

HEADS = "heads."
"""Beginning of the names of the auxiliary heads' parameters."""

_LANGUAGE = ("model.text_model.", "lm_head.")
_NO_MAPS = ("embed", "latents", "lm_head")


def language_names(names: Iterable[str]) -> frozenset[str]:
    """Return the names of the language model's parameters among *names*."""
    return frozenset(name for name in names if name.startswith(_LANGUAGE))


def matrix_names(parameters: Mapping[str, nn.Parameter]) -> frozenset[str]:
    """Return the names of the matrices that map activations, which Muon updates.

    Embeddings and heads do not count.
    """
    return frozenset(
        name
        for name, parameter in parameters.items()
        if parameter.dim() == 2
        and not name.startswith(HEADS)
        and not any(part in name for part in _NO_MAPS)
    )
