"""Kinds of parameters of the built-in model and of its auxiliary heads, recognised by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import nn

HEADS = "heads."
"""The beginning of the names of all parameters of the auxiliary heads."""

_LANGUAGE = ("model.text_model.", "lm_head.")
_NO_MAPS = ("embed", "latents", "lm_head")


def language_names(names: Iterable[str]) -> frozenset[str]:
    """Return those of *names* that are parameters of the language model."""
    return frozenset(name for name in names if name.startswith(_LANGUAGE))


def matrix_names(parameters: Mapping[str, nn.Parameter]) -> frozenset[str]:
    """Return the names of the matrices that the optimizer Muon updates.

    These are all matrices that are multiplied with activations, except those of output heads.
    Embeddings and latents are not among them.
    """
    return frozenset(
        name
        for name, parameter in parameters.items()
        if parameter.dim() == 2
        and not name.startswith(HEADS)
        and not any(part in name for part in _NO_MAPS)
    )
