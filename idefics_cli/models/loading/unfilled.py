"""Models without random weights, for weights that are read from files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch.overrides import TorchFunctionMode

_META = torch.device("meta")


class Unfilled(TorchFunctionMode):
    """Keeps torch's compiler out while transformers makes a model on the device "meta".

    Some functions on that device, which holds no numbers, are written in Python, and import sympy
    and the compiler: 0.4 s. `normal_` is left out, because the weights are read from files.
    `arange` computes on the CPU; it makes the few numbers of positions and frequencies, which
    transformers computes again on the device of the model.
    """

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        named = dict(kwargs or {})
        if func is torch.arange and named.get("device") == _META:
            named["device"] = "cpu"
        # `torch.nn.init.normal_` passes its tensor by name, the method of tensors by position.
        tensor = args[0] if args else named.get("tensor")
        is_draw = getattr(func, "__name__", "") == "normal_"
        if is_draw and isinstance(tensor, torch.Tensor) and tensor.is_meta:
            return tensor
        return func(*args, **named)
