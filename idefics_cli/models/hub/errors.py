"""The conversion of errors of the Hugging Face Hub and its cache to `ModelError` with a hint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from idefics_cli.core.errors import IdeficsError, ModelError
from idefics_cli.core.paths import display_path
from idefics_cli.models.hub.cache import cache_root
from idefics_cli.models.hub.registry import find_model


def not_cached(repo: str, revision: str | None = None) -> ModelError:
    """Return the error for a model that is not in the cache while the network is switched off."""
    return ModelError(
        f"{_named(repo, revision)} is not in the cache ({display_path(cache_root())}), "
        "and the network is switched off",
        hint="fetch it once, without `--offline` and the variable HF_HUB_OFFLINE: "
        f"`idefics models pull {_alias(repo) or repo}`; `-m demo` is built in",
    )


def no_safetensors(name: str) -> ModelError:
    """Return the error for weights that are in no safetensors file."""
    return ModelError(
        f"`{name}` has no weights in the safetensors format",
        hint="pickled `.bin` weights can run code, so they are not read; convert them with "
        "transformers: `from_pretrained(...)`, then `save_pretrained(...)`",
    )


@contextmanager
def hub_errors(repo: str, revision: str | None = None) -> Iterator[None]:
    """Turn the errors that the Hub client raises in the `with` block into a `ModelError`."""
    from huggingface_hub import errors

    # The base class is HTTPError of httpx, or of the fork of httpx that the client uses since
    # version 2.0. OSError covers LocalEntryNotFoundError, which means "unreachable and not cached".
    http_error: type[Exception] = errors.HfHubHTTPError.__bases__[0]
    try:
        yield
    except IdeficsError:
        raise
    except errors.HFValidationError as error:
        raise ModelError(f"`{repo}` is no Hub id", hint="a Hub id is `owner/name`") from error
    except (http_error, OSError) as error:
        raise _refusal(repo, revision, error) from error


def _refusal(repo: str, revision: str | None, error: Exception) -> ModelError:
    from huggingface_hub import errors

    # In a dry run, the client wraps the error of the Hub in a DryRunError.
    cause = error.__cause__ if isinstance(error, errors.DryRunError) else error
    if isinstance(cause, errors.GatedRepoError):
        return ModelError(
            f"`{repo}` is gated: its authors want to be asked first",
            hint=f"ask on https://huggingface.co/{repo}, then `hf auth login` or set HF_TOKEN",
        )
    if isinstance(cause, errors.RepositoryNotFoundError):
        # The Hub answers 401 for private repositories and for those that do not exist.
        return ModelError(
            f"there is no public model `{repo}` on the Hugging Face Hub",
            hint="check the name; for a private one, `hf auth login` or set HF_TOKEN",
        )
    if isinstance(cause, errors.RevisionNotFoundError):
        return ModelError(
            f"`{repo}` has no revision `{revision or 'main'}`",
            hint=f"https://huggingface.co/{repo}/tree/main lists the branches",
        )
    return _unreachable(repo, revision, cause)


def _unreachable(repo: str, revision: str | None, cause: BaseException | None) -> ModelError:
    from huggingface_hub import constants

    if isinstance(cause, OSError) and cause.errno is not None and cause.filename is not None:
        return ModelError(
            f"cannot write to the cache: {cause.strerror}: {cause.filename}",
            hint="HF_HOME=/some/other/folder moves the cache",
        )
    code = getattr(getattr(cause, "response", None), "status_code", None)
    why = f"answered {code}" if code is not None else "cannot be reached"
    return ModelError(
        f"{_named(repo, revision)} is not in the cache ({display_path(cache_root())}), "
        f"and {constants.ENDPOINT} {why}",
        hint="check the network and try again; `-m demo` is built in and needs none",
    )


def _named(repo: str, revision: str | None) -> str:
    """Return a name for messages: the alias, and the Hub id behind it.

    A user of the default model has never typed its Hub id, and would not know it.
    """
    alias, full = _alias(repo), repo if revision is None else f"{repo}@{revision}"
    return f"`{alias}` ({full})" if alias else f"`{full}`"


def _alias(repo: str) -> str | None:
    known = find_model(repo)
    return known.name if known else None
