"""The merge of flags, environment, file and defaults, with the origin of each value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal, get_args

from idefics_cli.config.setting import Setting, Value
from idefics_cli.config.settings import (
    LOCAL,
    Settings,
    closest_name,
    setting_table,
    with_choices,
)
from idefics_cli.config.store import MODELS, read_config, read_model_config
from idefics_cli.core.errors import ConfigError, UsageError

Source = Literal["flag", "environment", "file", "default"]
# The order of precedence: the first source that gives a value wins.
_SOURCES: tuple[Source, ...] = get_args(Source)
_NOT_SETTINGS = frozenset({"IDEFICS_CONFIG", "IDEFICS_API_KEY"})


@dataclass(frozen=True, slots=True)
class Origin:
    """The source of a value, and the name of the flag, variable or file."""

    source: Source
    name: str = ""


@dataclass(frozen=True, slots=True)
class Resolved:
    """The merged settings.

    Attributes:
        settings: The values.
        origins: The origin of each value, by the name of its field.
        file: The configuration file, which may be missing.
        warnings: Lines about variables that look like settings but are unknown.
        models: The settings in the tables of the file for single models, by the name of the model.
            Those of `settings.model` are in *settings*.
        stored: The settings at the top of the file.
    """

    settings: Settings
    origins: Mapping[str, Origin]
    file: Path
    warnings: tuple[str, ...] = ()
    models: Mapping[str, Mapping[str, Value]] = field(default_factory=dict)
    stored: Mapping[str, Value] = field(default_factory=dict)

    def for_model(self, model: str) -> Resolved:
        """Return the settings for another *model*; flags and variables stay as they are."""
        left = {
            name: Origin("file", str(self.file)) if name in self.stored else Origin("default")
            for name in self.models.get(self.settings.model, {})
            if self.origins[name].source == "file"
        }
        values: dict[str, Value] = {
            name: self.stored.get(name, setting_table()[name].default) for name in left
        }
        origins = {**self.origins, **left}
        for name, value in self.models.get(model, {}).items():
            if origins[name].source in ("file", "default"):
                values[name], origins[name] = value, _in_table(self.file, model)
        settings = replace(self.settings, **values, model=model)  # type: ignore[arg-type]  # checked
        return replace(self, settings=settings, origins=origins)

    def is_given(self, name: str) -> bool:
        """Whether the setting *name* has a value from a flag, a variable or the file."""
        return self.origins[name].source != "default"

    def written(self, name: str) -> Value:
        """Return the value of the setting *name* as a configuration file would have it."""
        value: Value = getattr(self.settings, name)
        return LOCAL if name == "server" and value is None and self.is_given(name) else value

    def overrides(self, name: str, other: str) -> bool:
        """Whether the source of the setting *name* has precedence over that of *other*."""
        ranks = [_SOURCES.index(self.origins[setting].source) for setting in (name, other)]
        return ranks[0] < ranks[1]


def resolve(
    flags: Mapping[str, object],
    environ: Mapping[str, str],
    file: Path,
    *,
    choices: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
) -> Resolved:
    """Merge all sources; the order of precedence is flag, environment, file, default.

    Args:
        flags: Values, or values as text, by field of `Settings`; None means "not given".
        environ: The environment; an empty variable means "not given".
        file: `config.toml`. A missing file is an error only if IDEFICS_CONFIG names it.
        choices: See `with_choices`.

    Raises:
        UsageError: If a flag has a wrong value.
        ConfigError: If a variable or the file has a wrong value, or a setting that is for the
            command line only, or if the file has an unknown key.
    """
    known = with_choices(choices)
    stored = read_config(file, must_exist=bool(environ.get("IDEFICS_CONFIG")), known=known)
    models = read_model_config(file, known=known)
    values: dict[str, Value] = {}
    origins: dict[str, Origin] = {}
    for name, setting in known.items():
        values[name], origins[name] = (
            _from_flag(setting, flags)
            or _from_environment(setting, environ)
            or _from_file(setting, stored, file)
            or (setting.default, Origin("default"))
        )
    if values["server"] == LOCAL:
        values["server"] = None
    settings = Settings(**values)  # type: ignore[arg-type]  # checked by Setting.check
    warnings = _unknown_variables(environ)
    resolved = Resolved(settings, origins, file, warnings, models, stored)
    return resolved.for_model(settings.model) if settings.model in models else resolved


def _in_table(file: Path, model: str) -> Origin:
    return Origin("file", f'{file} [{MODELS}."{model}"]')


def _from_flag(setting: Setting, flags: Mapping[str, object]) -> tuple[Value, Origin] | None:
    value = flags.get(setting.name)
    if value is None:
        return None
    try:
        checked = setting.parse(value) if isinstance(value, str) else setting.check(value)
        return checked, Origin("flag", setting.flag)
    except ValueError as error:
        raise UsageError(f"{setting.flag} {error}") from None


def _from_environment(setting: Setting, environ: Mapping[str, str]) -> tuple[Value, Origin] | None:
    text = environ.get(setting.variable)
    if text and setting.command_line_only:
        raise ConfigError(
            f"variable {setting.variable}: `{setting.name}` is for the command line only",
            hint=f"unset the variable, and give `{setting.flag}` to the command that needs it",
        )
    if text in setting.command_line_values:
        raise ConfigError(
            f"variable {setting.variable}: `{text}` is for the command line only",
            hint=f"unset the variable, and give `{setting.flag} {text}` to the command",
        )
    if text:
        try:
            return setting.parse(text), Origin("environment", setting.variable)
        except ValueError as error:
            raise ConfigError(f"variable {setting.variable} {error}") from None
    for variable in setting.also_variables:
        # Other programs define these variables, and react only to "true" and its synonyms.
        if environ.get(variable, "").upper() in {"1", "ON", "YES", "TRUE"}:
            return True, Origin("environment", variable)
    return None


def _from_file(
    setting: Setting, stored: Mapping[str, Value], file: Path
) -> tuple[Value, Origin] | None:
    if setting.name not in stored:
        return None
    return stored[setting.name], Origin("file", str(file))


def _unknown_variables(environ: Mapping[str, str]) -> tuple[str, ...]:
    known = {setting.variable for setting in setting_table().values()} | _NOT_SETTINGS
    lines = []
    for variable in sorted(environ):
        if variable.startswith("IDEFICS_") and variable not in known:
            guess = closest_name(variable.removeprefix("IDEFICS_"), setting_table())
            tail = f"; did you mean {setting_table()[guess].variable}?" if guess else ""
            lines.append(f"unknown variable {variable}{tail}")
    return tuple(lines)
