"""The results of transformers, called as its documentation shows, for equalities with ours."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
)

from idefics_cli.models.families.classes import processor_classes

Turn = tuple[str, Sequence[Image.Image], str]
"""The role, the pictures and the text of a turn."""

Content = tuple[str, Sequence[str | Image.Image]]
"""The role of a turn, and its texts and pictures in order."""

INTERLEAVED = ("idefics", "idefics-base")
"""Kinds of checkpoints whose processor takes a list of texts and pictures."""


@dataclass(frozen=True)
class Reference:
    """The processor and the model of transformers for one checkpoint.

    Attributes:
        kind: One of `tiny.KINDS`.
        processor: Any, because the processors of transformers have no types.
        model: Any, because the models of transformers have no types.
    """

    kind: str
    processor: Any
    model: Any

    def inputs(self, turns: Sequence[Turn]) -> dict[str, torch.Tensor]:
        """Return the model inputs of one conversation that ends with a user turn."""
        return self.content_inputs([(role, (*images, text)) for role, images, text in turns])

    def content_inputs(self, turns: Sequence[Content]) -> dict[str, torch.Tensor]:
        """Return the model inputs of a conversation with pictures anywhere in its turns."""
        if self.kind in INTERLEAVED:
            return dict(self._interleaved(turns))
        return dict(self._templated(turns))

    def raw_inputs(self, text: str, images: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
        """Return the model inputs of the raw prompt *text*."""
        if self.kind in INTERLEAVED:
            items: list[object] = []
            queue = list(images)
            for index, piece in enumerate(text.split("<image>")):
                items += [queue.pop(0)] if index else []
                items += [piece] if piece else []
            return dict(
                self.processor(text=[items], return_tensors="pt", add_end_of_utterance_token=False)
            )
        return dict(
            self.processor(
                text=text, images=[list(images)] if images else None, return_tensors="pt"
            )
        )

    def generate(
        self,
        inputs: dict[str, torch.Tensor],
        *,
        max_new_tokens: int,
        bad_words: Sequence[Sequence[int]] = (),
    ) -> list[int]:
        """Return the greedy tokens after the prompt, without special tokens and *bad_words*."""
        tokenizer = self.processor.tokenizer
        ids = tokenizer.convert_tokens_to_ids
        vocabulary = tokenizer.get_vocab()
        rows = sum(
            getattr(self.model.get_input_embeddings(), name, 0)
            for name in ("num_embeddings", "num_additional_embeddings")
        )
        end = ["<end_of_utterance>", tokenizer.eos_token, "<|end_of_text|>"]
        inputs = {key: value for key, value in inputs.items() if key != "mm_token_type_ids"}
        out = self.model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=[ids(t) for t in end if t in vocabulary and ids(t) < rows],
            bad_words_ids=[list(ids) for ids in bad_words]
            + [
                [i]
                for token, i in vocabulary.items()
                if token in ("<image>", "<fake_token_around_image>", "<global-img>")
                or token.startswith("<row_")
            ],
            pad_token_id=tokenizer.pad_token_id,
        )
        tokens: list[int] = out[0, inputs["input_ids"].shape[1] :].tolist()
        return tokens

    def _interleaved(self, turns: Sequence[Content]) -> Mapping[str, torch.Tensor]:
        prompt: list[object] = []
        for role, content in turns:
            head = f"{chr(10) if prompt else ''}{role.capitalize()}:"
            first, *rest = content
            items: list[object] = [f"{head} {first}"] if isinstance(first, str) else [head, first]
            items += rest
            last = items.pop()
            end = "<end_of_utterance>"
            prompt += [*items, f"{last}{end}"] if isinstance(last, str) else [*items, last, end]
        prompt += ["\nAssistant:"]
        inputs: Mapping[str, torch.Tensor] = self.processor(
            text=[prompt], return_tensors="pt", add_end_of_utterance_token=False
        )
        return inputs

    def _templated(self, turns: Sequence[Content]) -> Mapping[str, torch.Tensor]:
        messages = [
            {
                "role": role,
                "content": [
                    {"type": "text", "text": item}
                    if isinstance(item, str)
                    else {"type": "image", "image": item}
                    for item in content
                ],
            }
            for role, content in turns
        ]
        inputs: Mapping[str, torch.Tensor] = self.processor.apply_chat_template(
            messages,
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
        )
        return inputs


def load_reference(folder: Path, kind: str) -> Reference:
    """Load the checkpoint of *kind* in *folder* by plain calls of transformers."""
    legacy = kind in INTERLEAVED or kind.startswith("idefics2")
    processor = auto_processor(folder, kind, **({"legacy": True} if legacy else {}))
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    return Reference(kind, processor, model)


# Any: processors of transformers have no types.
def auto_processor(folder: Path, kind: str, **options: object) -> Any:
    """Return the result of `AutoProcessor`, or of its parts where it needs torchvision."""
    try:
        return AutoProcessor.from_pretrained(folder, **options)
    except (ImportError, ValueError):
        # SmolVLM2 needs it, and in transformers 5.17 every family.
        image_class, processor_class = processor_classes(_model_type(folder))
    tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    settings: dict[str, object] = {}
    if kind not in INTERLEAVED:
        settings["image_seq_len"] = _object(folder / "processor_config.json")["image_seq_len"]
        older, newer = folder / "chat_template.json", folder / "chat_template.jinja"
        if newer.exists():
            settings["chat_template"] = newer.read_text()
        elif older.exists():
            settings["chat_template"] = _object(older)["chat_template"]
    image_processor = image_class.from_pretrained(folder)
    return processor_class(image_processor=image_processor, tokenizer=tokenizer, **settings)


def _model_type(folder: Path) -> str:
    return str(_object(folder / "config.json")["model_type"])


def _object(path: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    return content
