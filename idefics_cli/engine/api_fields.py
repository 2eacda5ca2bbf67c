"""Fields of OpenAI's API, and of servers like it, that change no answer of an engine here."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

LABELS = frozenset(
    {
        *("user", "metadata", "store", "service_tier", "safety_identifier"),
        *("prompt_cache_key", "prompt_cache_retention"),
    }
)
"""Fields of OpenAI that by their definition do not change an answer."""

UNSUPPORTED: Mapping[str, tuple[object, ...]] = MappingProxyType(
    {
        "tools": ([],),
        "functions": ([],),
        "tool_choice": ("none", "auto"),
        "modalities": (["text"],),
        "logit_bias": ({},),
        "logprobs": (False,),
        "top_logprobs": (0,),
        "presence_penalty": (0,),
        "frequency_penalty": (0,),
        "min_p": (0,),
        "min_tokens": (0,),
        "num_beams": (1,),
        "length_penalty": (1,),
        "best_of": (1,),
        "ignore_eos": (False,),
        "skip_special_tokens": (True,),
        "add_generation_prompt": (True,),
        "echo": (False,),
        "suffix": ("",),
        "guided_grammar": (),
    }
)
"""Fields that ask for what no answer has, each with the values that ask for nothing."""
