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


def read_config(
    path: Path, *, must_exist: bool = False, known: Mapping[str, Setting] | None = None
) -> Mapping[str, Value]:
    """Return the settings in the file at *path*; no settings if the file is missing.

    Args:
        path: A TOML file whose keys are fields of `Settings`.
        must_exist: Whether a missing file is an error, because the user named it.
        known: The settings by name; None for `setting_table`.

    Raises:
        ConfigError: If the file cannot be read; or if it has an unknown key, a wrong value, or a
            setting for the command line only. Such a setting is ignored if it has its default.
    """
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
    values = _parsed(path, content)
    table = setting_table() if known is None else known
    checked = {key: _checked(path, table, key, value) for key, value in values.items()}
    return {key: value for key, value in checked.items() if not table[key].command_line_only}


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
    try:
        return setting.check(value)
    except ValueError as error:
        raise ConfigError(f"`{key}` in `{path}` {error}") from None


def _hint(key: str, value: object) -> str:
    if isinstance(value, dict):
        return "write the keys at the top of the file, without [tables]"
    guess = closest_name(key, setting_table())
    return f"did you mean `{guess}`?" if guess else "`idefics config` lists the keys"
