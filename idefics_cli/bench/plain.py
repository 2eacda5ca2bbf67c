"""The side of plain transformers, which is called as the documentation of the models shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from idefics_cli.bench.measure import Clock, Measurement, Tokens
from idefics_cli.core.errors import MemoryLimitError
from idefics_cli.core.types import Attachment, GenerationRequest, LoadSpec, Message
from idefics_cli.core.units import counted
from idefics_cli.models.families.spec import END_OF_UTTERANCE, IMAGE_TOKEN

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from idefics_cli.models.families.base import Family
    from idefics_cli.models.families.protocols import StepOutput


class GeneratingModel(Protocol):
    """The part of a transformers model that this module uses."""

    def __call__(self, **inputs: object) -> StepOutput:
        """Run the model once."""
        ...

    def generate(self, **arguments: object) -> Tensor:
        """Return prompt and reply tokens (B, T)."""
        ...


class CallableProcessor(Protocol):
    """The call of a transformers processor."""

    def __call__(self, **arguments: object) -> Mapping[str, Tensor]:
        """Return the inputs of the model."""
        ...


@dataclass(slots=True)
class FirstToken:
    """A stopping criterion that never stops, and records the time of the first token.

    Attributes:
        clock: Returns seconds.
        seconds: When the first token came, on *clock*; None before it.
    """

    clock: Clock
    seconds: float | None = None

    def __call__(self, input_ids: Tensor, scores: object, **_: object) -> Tensor:
        """Record the time at the first call; return False for each row."""
        import torch

        if self.seconds is None:
            if input_ids.is_cuda:
                torch.cuda.synchronize()
            self.seconds = self.clock()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


class Plain:
    """The contender that answers with `processor(...)` and `model.generate(...)` of transformers.

    Both sides map their weights from the same files, so they share memory if neither side converts
    the weights.

    Settings that do not change the speed are set as a careful user sets them: the config and the
    tokenizer flags are those that the authors of the checkpoint intended, patches have their exact
    positions, padding is on the left, end tokens end a reply, and image tokens are banned from
    replies.

    Args:
        spec: The same choices as on our side, except that transformers chooses the attention.
        folder: Folder of the checkpoint.
        clock: Returns seconds.
    """

    def __init__(self, spec: LoadSpec, folder: Path, clock: Clock) -> None:
        import torch
        from transformers import AutoModelForImageTextToText
        from transformers.utils import logging as library_logging

        from idefics_cli.models.loading.bitsandbytes import bitsandbytes_config
        from idefics_cli.models.loading.errors import library_errors
        from idefics_cli.models.loading.loader import load_config, load_family
        from idefics_cli.models.loading.patch_positions import compute_positions_exactly

        self._spec, self._clock = spec, clock
        if spec.threads is not None:
            torch.set_num_threads(spec.threads)
        library_logging.disable_progress_bar()
        arguments: dict[str, object] = {"dtype": getattr(torch, spec.dtype)}
        settings = bitsandbytes_config(spec)
        if settings is not None:
            arguments["quantization_config"] = settings
        if settings is not None or spec.device != "cpu":
            arguments["device_map"] = {"": spec.device}
        with library_errors(spec):
            config = load_config(folder)
            self._family = load_family(folder, spec, config)
            model = AutoModelForImageTextToText.from_pretrained(
                folder, config=config, trust_remote_code=False, **arguments
            )
        compute_positions_exactly(model)
        self._model = cast("GeneratingModel", model.eval())

    @property
    def model(self) -> GeneratingModel:
        """The model, in eval mode."""
        return self._model

    @property
    def family(self) -> Family:
        """The family, which holds the processor."""
        return self._family

    def answer(self, requests: Sequence[GenerationRequest]) -> Measurement:
        """Open the pictures of *requests* and answer them; see `Contender.answer`.

        Raises:
            MemoryLimitError: If the device runs out of memory.
        """
        import torch

        watch = FirstToken(self._clock)
        started = self._clock()
        try:
            with torch.inference_mode():
                inputs = self.inputs(requests)
                width = inputs["input_ids"].shape[1]
                ids = self._generate(inputs, requests[0].sampling.max_new_tokens, watch)
                tokens = [self._cut(row) for row in ids[:, width:].tolist()]
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise MemoryLimitError(
                "plain transformers ran out of memory with "
                f"{counted(len(requests), 'request')} at a time",
                hint="smaller `--batch-sizes` or `--contexts`",
            ) from error
        ended = self._clock()
        return Measurement(
            tokens=tuple(tokens),
            texts=tuple(self._text(row) for row in tokens),
            seconds=ended - started,
            first_seconds=(watch.seconds or ended) - started,
            prompt_tokens=width,
        )

    def gap(self, request: GenerationRequest, tokens: Tokens) -> float:
        """Return the gap of the answer *tokens* to *request*; see the top of `agreement`."""
        import torch

        if not tokens:
            return float("inf")
        with torch.inference_mode():
            inputs = dict(self.inputs([request]))
            for name in ("attention_mask", "image_attention_mask"):
                if name in inputs:
                    last = inputs[name][:, -1:]
                    more = [last] * (len(tokens) - 1)
                    inputs[name] = torch.cat([inputs[name], *more], dim=1)
            ids = inputs["input_ids"]
            inputs["input_ids"] = torch.cat([ids, ids.new_tensor([tokens[:-1]]).long()], dim=1)
            logits = self._model(**inputs).logits[0, -len(tokens) :].float()
            logits[:, sorted(self._family.banned_ids)] = float("-inf")
            chosen = logits.gather(1, torch.tensor(tokens, device=logits.device)[:, None])[:, 0]
            finite = logits[logits.isfinite()]
            return float(((logits.max(1).values - chosen) / finite.std()).max())

    def _generate(
        self, inputs: Mapping[str, Tensor], max_new_tokens: int, watch: FirstToken
    ) -> Tensor:
        from transformers import StoppingCriteriaList

        ids = self._model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=sorted(self._family.stop_ids),
            pad_token_id=self._family.pad_id,
            bad_words_ids=[[token] for token in sorted(self._family.banned_ids)],
            stopping_criteria=StoppingCriteriaList([watch]),
        )
        return ids

    def inputs(self, requests: Sequence[GenerationRequest]) -> Mapping[str, Tensor]:
        """Open the pictures of *requests*, and return the inputs of the model.

        A conversation that ends with an answer stays as it is, for training.
        """
        images = [[_open(a) for a in request.attachments] for request in requests]
        processor = cast("CallableProcessor", self._family.processor)
        if self._family.spec.prompt == "interleaved":
            texts = [_interleaved(r, i) for r, i in zip(requests, images, strict=True)]
            encoded = processor(
                text=texts,
                padding="longest",
                return_tensors="pt",
                add_end_of_utterance_token=False,
            )
        else:
            encoded = processor(
                text=[self._render(request) for request in requests],
                images=images if any(images) else None,
                padding=True,
                return_tensors="pt",
            )
        import torch

        dtype = getattr(torch, self._spec.dtype)
        moved = {k: v.to(self._spec.device) for k, v in encoded.items() if hasattr(v, "to")}
        if "pixel_values" in moved:
            moved["pixel_values"] = moved["pixel_values"].to(dtype)
        moved.pop("mm_token_type_ids", None)
        return moved

    def _render(self, request: GenerationRequest) -> str:
        if request.mode == "complete":
            return "".join(p if isinstance(p, str) else IMAGE_TOKEN for p in _parts(request))
        conversation: list[dict[str, object]] = [
            {"role": message.role, "content": [_item(part) for part in message.parts]}
            for message in request.messages
        ]
        text = self._family.processor.apply_chat_template(
            conversation, add_generation_prompt=request.messages[-1].role == "user"
        )
        tokenizer = self._family.tokenizer
        bos = tokenizer.bos_token or ""
        # Idefics3's template and its tokenizer both write the begin token. The prompt must have
        # only one.
        if bos and text.startswith(bos) and tokenizer("", add_special_tokens=True)["input_ids"]:
            return text.removeprefix(bos)
        return text

    def _cut(self, row: list[int]) -> Tokens:
        for index, token in enumerate(row):
            if token in self._family.stop_ids:
                return tuple(row[: index + 1])
        return tuple(row)

    def _text(self, tokens: Tokens) -> str:
        text = self._family.tokenizer.decode(
            tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text.strip()


def _open(attachment: Attachment) -> Image:
    from PIL import Image, ImageOps

    with Image.open(attachment.source) as image:
        upright = ImageOps.exif_transpose(image)
        return upright.convert("RGB")


def _parts(request: GenerationRequest) -> list[str | Attachment]:
    return [part for message in request.messages for part in message.parts]


def _item(part: str | Attachment) -> dict[str, str]:
    return {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}


def _interleaved(request: GenerationRequest, images: list[Image]) -> list[str | Image]:
    """Return the prompt of IDEFICS-1 as its documentation writes it: a list of texts and images."""
    queue = list(images)
    if request.mode == "complete":
        return [p if isinstance(p, str) else queue.pop(0) for p in _parts(request)]
    items: list[str | Image] = []
    for message in request.messages:
        items += _turn(message, queue, start="\n" if items else "")
    return [*items, "\nAssistant:"] if request.messages[-1].role == "user" else items


def _turn(message: Message, queue: list[Image], *, start: str) -> list[str | Image]:
    head = f"{start}{message.role.capitalize()}:"
    if not message.attachments:
        return [f"{head} {message.text}{END_OF_UTTERANCE}"]
    pictures = [queue.pop(0) for _ in message.attachments]
    return [head, *pictures, f"{message.text}{END_OF_UTTERANCE}"]
