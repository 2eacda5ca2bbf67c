"""The reader of the configuration file `config.toml`."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path

from idefics_cli.config.setting import Setting, Value
from idefics_cli.config.settings import closest_name, setting_table
from idefics_cli.core.errors import ConfigError
from idefics_cli.core.files import read_regular_file

_LIMIT_BYTES = 2**20


MODELS = "models"
"""The table of the file that holds a table of settings for each model, by name."""
# These settings may be given for a single model: how it is loaded, and how it answers.
_OF_MODELS = frozenset(
    {"revision", "device", "dtype", "quantization", "attention", "splitting", "longest_edge",
     "threads", "system", "temperature", "top_p", "top_k", "repetition_penalty", "max_new_tokens",
     "seed", "prompt", "raw", "batch_size"}
)  # fmt: skip


def read_config(
    path: Path, *, must_exist: bool = False, known: Mapping[str, Setting] | None = None
) -> Mapping[str, Value]:
    """Return the settings in the file at *path*; no settings if the file is missing.

    The tables of models are left out; see `read_model_config`.

    Args:
        path: A TOML file whose keys are fields of `Settings`.
        must_exist: Whether a missing file is an error, because the user named it.
        known: The settings by name; None for `setting_table`.

    Raises:
        ConfigError: If the file cannot be read; or if it has an unknown key, a wrong value, or a
            setting for the command line only. Such a setting is ignored if it has its default.
    """
    values = _read(path, must_exist=must_exist)
    values.pop(MODELS, None)
    table = setting_table() if known is None else known
    checked = {key: _checked(path, table, key, value) for key, value in values.items()}
    return {key: value for key, value in checked.items() if not table[key].command_line_only}


def read_model_config(
    path: Path, *, known: Mapping[str, Setting] | None = None
) -> Mapping[str, Mapping[str, Value]]:
    """Return the settings in the tables `[models."NAME"]` of a file, by the name of the model.

    Args:
        path: As for `read_config`, which reads the file first.
        known: The settings by name; None for `setting_table`.

    Raises:
        ConfigError: As `read_config`, and if a table has a setting that no model can have.
    """
    tables = _read(path, must_exist=False).get(MODELS, {})
    known = setting_table() if known is None else known
    found: dict[str, Mapping[str, Value]] = {}
    for name, table in tables.items() if isinstance(tables, dict) else [("", None)]:
        if not isinstance(table, dict):
            raise ConfigError(
                f"`{MODELS}` in `{path}` must hold a table for each model",
                hint=f'`[{MODELS}."smolvlm-256m"]`, and its keys below it',
            )
        for key in table:
            if key in known and key not in _OF_MODELS:
                raise ConfigError(
                    f'`{key}` in `[{MODELS}."{name}"]` of `{path}` does not depend on the model',
                    hint="write the key at the top of the file",
                )
        found[name] = {key: _checked(path, known, key, value) for key, value in table.items()}
    return found


def _read(path: Path, *, must_exist: bool) -> dict[str, object]:
    if str(path) == os.devnull:
        return {}
    try:
        content = read_regular_file(path, limit_bytes=_LIMIT_BYTES)
    except FileNotFoundError:
        if not must_exist:
            return {}
        raise ConfigError(
            f"no configuration file `{path}`",
            hint="create the file, or unset the variable IDEFICS_CONFIG, which names it",
        ) from None
    except (OSError, ValueError) as error:  # ValueError: NUL in the name
        reason = error.strerror if isinstance(error, OSError) else None
        raise ConfigError(f"cannot read `{path}`: {reason or error}") from error
    return _parsed(path, content)


def _parsed(path: Path, content: bytes) -> dict[str, object]:
    try:
        return tomllib.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"`{path}` is not UTF-8 text (byte {error.start + 1})") from error
    except RecursionError as error:
        raise ConfigError(f"`{path}` is not valid TOML: nested too deeply") from error
    except ValueError as error:  # TOMLDecodeError; an integer of more than 4,300 digits
        raise ConfigError(
            f"`{path}` is not valid TOML: {error}", hint='text needs quotes, as in `model = "demo"`'
        ) from error


def _checked(path: Path, table: Mapping[str, Setting], key: str, value: object) -> Value:
    setting = table.get(key)
    if setting is None:
        raise ConfigError(f"unknown key `{key}` in `{path}`", hint=_hint(key, value))
    # The default is allowed, because earlier versions wrote these keys with their defaults when
    # `idefics config` made the file.
    if setting.command_line_only and value is not setting.default:
        raise ConfigError(
            f"`{key}` in `{path}` is for the command line only",
            hint=f"remove the key, and give `{setting.flag}` to the command that needs it",
        )
    if value in setting.command_line_values:
        raise ConfigError(
            f'`{key} = "{value}"` in `{path}` is for the command line only',
            hint=f"remove the key, and give `{setting.flag} {value}` to the command",
        )
    if key == "model" and isinstance(value, dict):
        raise ConfigError(
            f"`model` in `{path}` must be text, not a table",
            hint=f'`[{MODELS}."smolvlm-256m"]` is a table for one model',
        )
    try:
        return setting.check(value)
    except ValueError as error:
        raise ConfigError(f"`{key}` in `{path}` {error}") from None


def _hint(key: str, value: object) -> str:
    if isinstance(value, dict):
        return f'write the keys at the top of the file; the only tables are `[{MODELS}."NAME"]`'
    guess = closest_name(key, setting_table())
    return f"did you mean `{guess}`?" if guess else "`idefics config` lists the keys"
