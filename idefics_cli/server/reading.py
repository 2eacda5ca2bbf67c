"""The bodies of requests: messages or a prompt, and the fields beside them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from idefics_cli.core.errors import PromptError
from idefics_cli.core.json_objects import JsonObject, checked_text, kind_of
from idefics_cli.core.types import (
    Attachment,
    GenerationRequest,
    Message,
    Part,
    PictureDetail,
    Role,
    Sampling,
)
from idefics_cli.engine.schema.form import ReplyForm
from idefics_cli.engine.schema.requested import form_of
from idefics_cli.models.families.raw_prompt import raw_parts
from idefics_cli.server.errors import ApiError, bad_field, unsupported
from idefics_cli.server.fields import RequestOptions, read_options

COMPLETION_TOKENS = 16
"""The limit of `/v1/completions` if a request has none, as in OpenAI's API."""

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}
_DETAILS = {"auto": None, "high": None, "original": None, "low": False}
_MOST_MESSAGES = 10_000
_MOST_COMPLETION_LOGPROBS = 5
_MESSAGE_KEYS = frozenset({"role", "content"})
_REFUSED_PARTS = frozenset({"input_audio", "file", "video_url", "video", "refusal"})


@dataclass(frozen=True, slots=True)
class ApiRequest:
    """A request as its body says it.

    Attributes:
        generation: The request for the engine.
        options: The other fields.
        model: The model that it names; None if it names none.
        params: For each picture, the path of its address in the body.
        form: What the replies must be; None leaves them free.
    """

    generation: GenerationRequest
    options: RequestOptions
    model: str | None = None
    params: tuple[str, ...] = ()
    form: ReplyForm | None = None


class BodyReader:
    """Reads the bodies of requests.

    Args:
        sampling: How tokens are chosen if a request does not say it.
        system: Instruction for conversations that have none.
        most_images: Largest number of pictures of a request.
    """

    def __init__(self, sampling: Sampling, *, system: str | None, most_images: int) -> None:
        self._sampling = sampling
        self._system = system
        self._most_images = most_images

    def read_chat(self, body: JsonObject) -> ApiRequest:
        """Return the request of a body for `/v1/chat/completions`.

        Raises:
            ApiError: If a field is wrong or not supported.
            PromptError: As `ApiError`; its message begins with the name of the field.
        """
        conversation = _MessageReader(self._most_images)
        messages = conversation.read(body.get("messages"))
        if self._system and messages[0].role != "system":
            messages = (Message("system", (self._system,)), *messages)
        fields = {n: value for n, value in body.items() if n not in ("messages", "model")}
        options = read_options(fields, self._sampling)
        request = GenerationRequest(messages, options.sampling)
        return self._read(body, request, options, conversation)

    def read_completion(self, body: JsonObject) -> ApiRequest:
        """Return the request of a body for `/v1/completions`; see `read_chat`."""
        prompt = body.get("prompt")
        if isinstance(prompt, list) and len(prompt) == 1:
            prompt = prompt[0]
        if not isinstance(prompt, str):
            raise bad_field("prompt", f"must be one text, not {kind_of(prompt)}")
        text = checked_text(prompt, "prompt")
        conversation = _MessageReader(self._most_images)
        images = body.get("images")
        if images is not None and not isinstance(images, list):
            raise bad_field("images", f"must be a list, not {kind_of(images)}")
        pictures = [
            conversation.picture(one, f"images[{at}]") for at, one in enumerate(images or ())
        ]
        try:
            parts = raw_parts(text, pictures)
        except PromptError as error:
            raise bad_field("prompt", f"is wrong: {error}") from None
        if not parts:
            raise bad_field("prompt", "is empty")
        fields = {n: v for n, v in body.items() if n not in ("prompt", "images", "model")}
        fields |= _completion_logprobs(fields)
        options = read_options(fields, replace(self._sampling, max_new_tokens=COMPLETION_TOKENS))
        request = GenerationRequest((Message("user", parts),), options.sampling, "complete")
        return self._read(body, request, options, conversation)

    def _read(
        self,
        body: JsonObject,
        request: GenerationRequest,
        options: RequestOptions,
        conversation: _MessageReader,
    ) -> ApiRequest:
        model = body.get("model")
        form = form_of(options.forms, max_new_tokens=options.sampling.max_new_tokens)
        request = replace(request, banned=options.banned, cache_salt=options.cache_salt)
        if form is not None:
            request = form.applied_to(request)
        if options.tells_logprobs and request.constraint and request.constraint.kind == "choice":
            raise unsupported("logprobs", "is not supported for a choice of answers")
        return ApiRequest(
            request,
            replace(options, ignored=(*options.ignored, *conversation.ignored)),
            None if model is None else checked_text(model, "model"),
            tuple(conversation.params),
            form,
        )


def _completion_logprobs(fields: JsonObject) -> JsonObject:
    """Return the fields of a chat for `logprobs` of a completion, which is a number."""
    value = fields.get("logprobs")
    if value is None or value is False:
        return {}
    if type(value) is not int or not 0 <= value <= _MOST_COMPLETION_LOGPROBS:
        raise bad_field("logprobs", f"must be a whole number from 0 to {_MOST_COMPLETION_LOGPROBS}")
    return {"logprobs": True, "top_logprobs": value}


class _MessageReader:
    """Reads messages, and notes their pictures and the fields without effect."""

    def __init__(self, most_images: int) -> None:
        self._most_images = most_images
        self.params: list[str] = []
        self.ignored: list[str] = []

    def read(self, value: object) -> tuple[Message, ...]:
        if not isinstance(value, list) or not value:
            raise bad_field("messages", "must be a list of messages")
        if len(value) > _MOST_MESSAGES:
            raise bad_field("messages", f"has more than {_MOST_MESSAGES} messages")
        messages = tuple(self._message(one, f"messages[{at}]") for at, one in enumerate(value))
        last = f"messages[{len(messages) - 1}]"
        if messages[-1].role != "user":
            raise bad_field(f"{last}.role", "of the last message must be user")
        if not messages[-1].text.strip():
            raise bad_field(f"{last}.content", "has no text: ask something about the pictures")
        return messages

    def picture(self, value: object, name: str) -> Attachment:
        detail: object = None
        if isinstance(value, dict):
            self.ignored += [f"{name}.{key}" for key in value if key not in ("url", "detail")]
            detail, name, value = value.get("detail"), f"{name}.url", value.get("url")
        if not isinstance(value, str):
            raise bad_field(name, f"must be text, not {kind_of(value)}", code="invalid_image_url")
        if detail is not None and (not isinstance(detail, str) or detail not in _DETAILS):
            raise bad_field(
                f"{name.removesuffix('.url')}.detail", "must be auto, low, high or original"
            )
        self.params.append(name)
        if len(self.params) > self._most_images:
            raise ApiError(
                400,
                f"more than {self._most_images} pictures",
                code="invalid_value",
                param=name,
            )
        splitting = _DETAILS[detail] if isinstance(detail, str) else None
        return Attachment(value, detail=PictureDetail(splitting=splitting))

    def _message(self, value: object, name: str) -> Message:
        if not isinstance(value, dict):
            raise bad_field(name, f"must be an object, not {kind_of(value)}")
        given = value.get("role")
        role = _ROLES.get(given) if isinstance(given, str) else None
        if role is None:
            if given in ("tool", "function"):
                raise unsupported(f"{name}.role", "is not supported: the models have no tools")
            raise bad_field(f"{name}.role", "must be system, developer, user or assistant")
        for key, extra in value.items():
            if key in ("tool_calls", "function_call", "audio") and extra:
                raise unsupported(f"{name}.{key}")
            # The answers of an API have further keys, which are empty or null.
            if key not in _MESSAGE_KEYS and extra:
                self.ignored.append(f"{name}.{key}")
        parts = self._parts(value.get("content"), f"{name}.content")
        if role != "user" and any(isinstance(part, Attachment) for part in parts):
            raise unsupported(f"{name}.content", "has a picture: only user messages have pictures")
        return Message(role, parts)

    def _parts(self, value: object, name: str) -> tuple[Part, ...]:
        if isinstance(value, str):
            return (checked_text(value, name),)
        if not isinstance(value, list):
            raise bad_field(name, f"must be text or a list of parts, not {kind_of(value)}")
        return tuple(self._part(one, f"{name}[{at}]") for at, one in enumerate(value))

    def _part(self, value: object, name: str) -> Part:
        if not isinstance(value, dict):
            raise bad_field(name, f"must be an object, not {kind_of(value)}")
        kind = value.get("type")
        if kind in ("text", "image_url"):
            self.ignored += [f"{name}.{key}" for key in value if key not in ("type", kind)]
        if kind == "text":
            return checked_text(value.get("text"), f"{name}.text")
        if kind == "image_url":
            return self.picture(value.get("image_url"), f"{name}.image_url")
        if isinstance(kind, str) and kind in _REFUSED_PARTS:
            raise unsupported(f"{name}.type")
        raise bad_field(f"{name}.type", "must be text or image_url")
