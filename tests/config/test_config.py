"""Settings: one table, four sources, and errors that name the source."""

from __future__ import annotations

import dataclasses
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest

from idefics_cli.config.resolve import Origin, resolve
from idefics_cli.config.setting import Setting, Value
from idefics_cli.config.settings import Settings, setting_table
from idefics_cli.config.store import read_config
from idefics_cli.core.errors import ConfigError, IdeficsError, UsageError
from idefics_cli.core.types import ImageLimits, Sampling
from idefics_cli.images.background import parse_colour

NOWHERE = Path("/nonexistent/config.toml")


def other_value(setting: Setting) -> Value:
    """Return an allowed value of *setting* that is not its default."""
    if setting.choices:
        return next(c for c in setting.choices if c != setting.default)
    patterned = {"device": "cuda:1", "devices": "cpu:2", "keep_alive": "7s"}
    patterned |= {"shard": "1/2", "ray": "auto"}
    if setting.name in patterned:
        return patterned[setting.name]
    if setting.kind is bool:
        return not setting.default
    others: dict[type, Value] = {str: "other", int: 7, float: 0.5}
    return others[setting.kind]


def write(path: Path, values: Mapping[str, Value]) -> Path:
    lines = [
        f"{k} = {str(v).lower() if isinstance(v, bool) else repr(v)}" for k, v in values.items()
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_with_nothing_given_every_setting_has_its_default() -> None:
    resolved = resolve({}, {}, NOWHERE)
    assert resolved.settings == Settings()
    assert set(resolved.origins.values()) == {Origin("default")}
    assert list(resolved.origins) == [field.name for field in dataclasses.fields(Settings)]


def test_defaults_agree_with_those_of_the_values_they_fill() -> None:
    assert Settings().temperature == Sampling().temperature == 0
    assert Settings().max_pixels == ImageLimits().max_pixels
    assert Settings().timeout_seconds == ImageLimits().timeout_seconds
    assert parse_colour(Settings().background) == ImageLimits().background


COMMAND_LINE_ONLY = ("embed", "overwrite", "retry_failed", "dry_run", "yes")
STORED = {
    name: setting for name, setting in setting_table().items() if not setting.command_line_only
}


@pytest.mark.parametrize("setting", STORED.values(), ids=STORED)
def test_a_flag_beats_the_environment_beats_the_file_beats_the_default(
    setting: Setting, tmp_path: Path
) -> None:
    other = other_value(setting)
    name = setting.name
    file = write(tmp_path / "config.toml", {name: other})
    text = str(other).lower() if isinstance(other, bool) else str(other)

    from_file = resolve({}, {}, file)
    assert getattr(from_file.settings, name) == other
    assert from_file.origins[name] == Origin("file", str(file))

    from_environment = resolve({}, {setting.variable: text}, NOWHERE)
    assert getattr(from_environment.settings, name) == other
    assert from_environment.origins[name] == Origin("environment", setting.variable)

    from_flag = resolve({name: other}, {}, NOWHERE)
    assert getattr(from_flag.settings, name) == other
    assert from_flag.origins[name] == Origin("flag", setting.flag)
    assert from_file.settings == from_environment.settings == from_flag.settings


@pytest.mark.parametrize("name", COMMAND_LINE_ONLY)
@pytest.mark.parametrize("value", [True, False])
def test_what_decides_about_one_call_is_for_the_command_line_only(
    name: str, value: bool, tmp_path: Path
) -> None:
    setting = setting_table()[name]
    file = write(tmp_path / "config.toml", {name: value or 0})
    with pytest.raises(ConfigError) as of_file:
        resolve({}, {}, file)
    with pytest.raises(ConfigError) as of_variable:
        resolve({}, {setting.variable: str(value)}, NOWHERE)

    assert str(of_file.value) == f"`{name}` in `{file}` is for the command line only"
    assert str(of_variable.value) == (
        f"variable {setting.variable}: `{name}` is for the command line only"
    )
    end = f", and give `{setting.flag}` to the command that needs it"
    assert of_file.value.hint == f"remove the key{end}"
    assert of_variable.value.hint == f"unset the variable{end}"
    assert resolve({}, {setting.variable: ""}, NOWHERE).origins[name] == Origin("default")


def test_overwrite_is_for_the_command_line_only_under_its_other_name_too(tmp_path: Path) -> None:
    file = write(tmp_path / "config.toml", {"existing": "overwrite"})
    with pytest.raises(ConfigError) as of_file:
        resolve({}, {}, file)
    with pytest.raises(ConfigError) as of_variable:
        resolve({}, {"IDEFICS_EXISTING": "overwrite"}, NOWHERE)

    told = "is for the command line only"
    assert str(of_file.value) == f'`existing = "overwrite"` in `{file}` {told}'
    assert str(of_variable.value) == f"variable IDEFICS_EXISTING: `overwrite` {told}"
    end = ", and give `--existing overwrite` to the command"
    assert of_file.value.hint == f"remove the key{end}"
    assert of_variable.value.hint == f"unset the variable{end}"
    assert resolve({"existing": "overwrite"}, {}, NOWHERE).settings.existing == "overwrite"
    skips = write(tmp_path / "config.toml", {"existing": "skip"})
    assert resolve({}, {}, skips).settings.existing == "skip"


def test_a_file_that_an_earlier_version_wrote_is_read(tmp_path: Path) -> None:
    # An earlier version of `idefics config` printed every setting, and called that a valid
    # config.toml.
    old = {**dict.fromkeys(COMMAND_LINE_ONLY, False), "top_k": 3}
    resolved = resolve({}, {}, write(tmp_path / "config.toml", old))
    assert resolved.settings.top_k == 3
    assert {resolved.origins[name] for name in COMMAND_LINE_ONLY} == {Origin("default")}


def test_each_source_hides_the_next(tmp_path: Path) -> None:
    file = write(tmp_path / "config.toml", {"top_k": 3})
    environ = {"IDEFICS_TOP_K": "2"}
    assert resolve({"top_k": 1}, environ, file).settings.top_k == 1
    assert resolve({"top_k": None}, environ, file).settings.top_k == 2
    assert resolve({}, {"IDEFICS_TOP_K": ""}, file).settings.top_k == 3
    assert resolve({"top_k": 0}, environ, file).settings.top_k == 0


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("temperature", "hot", "must be a number, not `hot`"),
        ("temperature", "-1", "must be from 0 to 2, not `-1.0`"),
        ("temperature", "1e99", "must be from 0 to 2, not `1e+99`"),
        ("repetition_penalty", "1e300", "must be from 0.1 to 10, not `1e+300`"),
        ("top_k", "2147483648", "must be from 0 to 2147483647, not `2147483648`"),
        ("temperature", "nan", "must be a finite number, not `nan`"),
        ("temperature", "inf", "must be a finite number, not `inf`"),
        ("top_p", "0", "must be more than 0 and at most 1, not `0.0`"),
        ("top_p", "1.5", "must be more than 0 and at most 1, not `1.5`"),
        ("top_k", "1.5", "must be a whole number, not `1.5`"),
        ("top_k", "many", "must be a whole number, not `many`"),
        ("max_new_tokens", "0", "must be 1 or more, not `0`"),
        ("seed", "-1", "must be 0 or more, not `-1`"),
        ("offline", "maybe", "must be true or false, not `maybe`"),
        ("device", "gpu", "must be auto, cpu, mps, cuda or cuda:N, not `gpu`"),
        ("device", "cpux", "must be auto, cpu, mps, cuda or cuda:N, not `cpux`"),
        *(
            (
                "dtype",
                typed,
                f"must be auto, bfloat16, float16 or float32, not `{typed}`; "
                f"did you mean `{meant}`?",
            )
            for typed, meant in (("fp16", "float16"), ("BF16", "bfloat16"), ("fp32", "float32"))
        ),
        (
            "quantization",
            "4bits",
            "must be auto, none, 8bit or 4bit, not `4bits`; did you mean `4bit`?",
        ),
        (
            "existing",
            "x" * 70,
            f"must be error, skip, overwrite, append or prepend, not `{'x' * 60}…`",
        ),
    ],
)
def test_a_wrong_variable_is_named_with_what_it_must_be(name: str, text: str, message: str) -> None:
    variable = setting_table()[name].variable
    with pytest.raises(ConfigError) as caught:
        resolve({}, {variable: text}, NOWHERE)
    assert str(caught.value) == f"variable {variable} {message}"


def test_a_wrong_flag_is_a_usage_error_that_names_the_flag() -> None:
    with pytest.raises(UsageError) as caught:
        resolve({"top_p": 2.0}, {}, NOWHERE)
    assert str(caught.value) == "--top-p must be more than 0 and at most 1, not `2.0`"
    assert not isinstance(caught.value, ConfigError)


@pytest.mark.parametrize(
    ("content", "message", "hint"),
    [
        ("tempreature = 1", "unknown key `tempreature` in `{}`", "did you mean `temperature`?"),
        ("top-k = 1", "unknown key `top-k` in `{}`", "did you mean `top_k`?"),
        ("zzz = 1", "unknown key `zzz` in `{}`", "`idefics config` lists the keys"),
        (
            "[caption]\nprompt = 'x'",
            "unknown key `caption` in `{}`",
            'write the keys at the top of the file; the only tables are `[models."NAME"]`',
        ),
        (
            "[model.demo]\nsplitting = true",
            "`model` in `{}` must be text, not a table",
            '`[models."smolvlm-256m"]` is a table for one model',
        ),
        (
            "models = 1",
            "`models` in `{}` must hold a table for each model",
            '`[models."smolvlm-256m"]`, and its keys below it',
        ),
        (
            "[models.demo]\noutput = 'x'",
            '`output` in `[models."demo"]` of `{}` does not depend on the model',
            "write the key at the top of the file",
        ),
        ("[models.demo]\nsplit = 1", "unknown key `split` in `{}`", "did you mean `splitting`?"),
        ("[models.demo]\ntop_k = true", "`top_k` in `{}` must be a whole number, not `true`", None),
        ("top_k = true", "`top_k` in `{}` must be a whole number, not `true`", None),
        ("top_k = 1.0", "`top_k` in `{}` must be a whole number, not `1.0`", None),
        ("json = 1", "`json` in `{}` must be true or false, not `1`", None),
        ("json = 'yes'", "`json` in `{}` must be true or false, not `yes`", None),
        ("model = 3", "`model` in `{}` must be text, not `3`", None),
        ("seed = 1979-05-27", "`seed` in `{}` must be a whole number, not `1979-05-27`", None),
        ("temperature = nan", "`temperature` in `{}` must be a finite number, not `nan`", None),
        (
            "on_truncate = 'xml'",
            "`on_truncate` in `{}` must be keep, trim or extend, not `xml`",
            None,
        ),
    ],
)
def test_a_wrong_file_is_named_with_its_key(
    content: str, message: str, hint: str | None, tmp_path: Path
) -> None:
    file = tmp_path / "config.toml"
    file.write_text(content)
    with pytest.raises(ConfigError) as caught:
        resolve({}, {}, file)
    assert str(caught.value) == message.format(file)
    assert caught.value.hint == hint


def test_choices_of_a_higher_layer_hold_for_every_source(tmp_path: Path) -> None:
    file = write(tmp_path / "config.toml", {"format": "xml"})
    choices = {"format": ("red", "blue")}
    for flags, environ, path, message in (
        ({"format": "xml"}, {}, NOWHERE, "--format must be red or blue, not `xml`"),
        ({}, {"IDEFICS_FORMAT": "xml"}, NOWHERE, "variable IDEFICS_FORMAT must be red or blue"),
        ({}, {}, file, f"`format` in `{file}` must be red or blue, not `xml`"),
    ):
        with pytest.raises(UsageError, match=re.escape(message)):
            resolve(flags, environ, path, choices=choices)
    resolved = resolve({"format": "red"}, {}, NOWHERE, choices=choices)
    assert resolved.settings.format == "red"


@pytest.mark.parametrize("content", [b"model = ", b"= 1", b"model = 'a'\nmodel = 'b'"])
def test_a_file_that_is_not_toml_is_an_error_with_its_name(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=f"`{file}` is not valid TOML"):
        read_config(file)


def test_a_folder_in_place_of_the_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"cannot read `{tmp_path}`"):
        read_config(tmp_path)


def test_a_byte_order_mark_and_whole_numbers_for_numbers_are_fine(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_bytes(b"\xef\xbb\xbftemperature = 1\n")
    temperature = resolve({}, {}, file).settings.temperature
    assert (type(temperature), temperature) == (float, 1.0)


def test_a_file_that_is_named_must_be_there() -> None:
    with pytest.raises(ConfigError) as caught:
        resolve({}, {"IDEFICS_CONFIG": str(NOWHERE)}, NOWHERE)
    assert str(caught.value) == f"no configuration file `{NOWHERE}`"


@pytest.mark.parametrize("text", ["1", "true", "ON", "Yes"])
def test_hf_hub_offline_means_offline(text: str) -> None:
    resolved = resolve({}, {"HF_HUB_OFFLINE": text}, NOWHERE)
    assert resolved.settings.offline is True
    assert resolved.origins["offline"] == Origin("environment", "HF_HUB_OFFLINE")


@pytest.mark.parametrize("text", ["0", "", "false", "whatever"])
def test_hf_hub_offline_that_is_not_true_says_nothing(text: str, tmp_path: Path) -> None:
    file = write(tmp_path / "config.toml", {"offline": True})
    assert resolve({}, {"HF_HUB_OFFLINE": text}, file).settings.offline is True


def test_the_variable_of_other_terminal_programs_means_accessible() -> None:
    assert resolve({}, {"ACCESSIBLE": "1"}, NOWHERE).settings.accessible is True
    environ = {"ACCESSIBLE": "1", "IDEFICS_ACCESSIBLE": "0"}
    assert resolve({}, environ, NOWHERE).settings.accessible is False


def test_our_own_variable_beats_that_of_the_hub() -> None:
    environ = {"HF_HUB_OFFLINE": "1", "IDEFICS_OFFLINE": "0"}
    assert resolve({}, environ, NOWHERE).settings.offline is False


def test_a_misspelt_variable_is_told_and_ignored() -> None:
    resolved = resolve({}, {"IDEFICS_TEMPRATURE": "1", "IDEFICS_QQ": "1"}, NOWHERE)
    assert resolved.settings == Settings()
    assert resolved.warnings == (
        "unknown variable IDEFICS_QQ",
        "unknown variable IDEFICS_TEMPRATURE; did you mean IDEFICS_TEMPERATURE?",
    )


def test_every_setting_has_a_help_that_is_a_sentence() -> None:
    for setting in setting_table().values():
        assert setting.help[0].isupper() or setting.help[0].isdigit(), setting.name
        assert setting.help.endswith("."), setting.name


def test_every_default_passes_its_own_check() -> None:
    for setting in setting_table().values():
        if setting.default is not None:
            assert setting.check(setting.default) == setting.default


def test_errors_of_configuration_exit_2() -> None:
    assert issubclass(ConfigError, IdeficsError)
    assert ConfigError.exit_code == UsageError.exit_code == 2


def test_the_table_is_valid_toml_by_name() -> None:
    assert tomllib.loads("\n".join(f"{name} = 0" for name in setting_table())) == dict.fromkeys(
        setting_table(), 0
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a = " + b"[" * 100_000, "nested too deeply"),
        (b"seed = " + b"1" * 5000, "not valid TOML"),
        (b"seed = 0x" + b"f" * 20_000, "not a number of thousands of digits"),
        (b"temperature = 1" + b"0" * 400, "must be a finite number"),
        (b"timeout_seconds = -1" + b"0" * 400, "must be a finite number"),
        (b"# " + b"x" * 2**20, "File too large"),
    ],
    ids=lambda value: str(value[:20]),
)
def test_a_file_of_any_content_is_an_error_of_ours(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_config(path)


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_pipe_or_device_is_not_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "config.toml"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(ConfigError, match=r"cannot read `.*`: Not a regular file"):
        read_config(path)


def test_the_null_device_has_no_settings() -> None:
    assert read_config(Path(os.devnull), must_exist=True) == {}


MODEL_TABLES = """
model = "demo"
temperature = 0.5
longest_edge = 500
[models.demo]
longest_edge = 700
splitting = false
[models."org/other"]
temperature = 0.9
dtype = "bfloat16"
"""


def test_a_model_has_settings_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(MODEL_TABLES, encoding="utf-8")
    demo = resolve({}, {}, file)
    assert (demo.settings.longest_edge, demo.settings.splitting) == (700, False)
    assert (demo.settings.temperature, demo.settings.dtype) == (0.5, "auto")
    assert demo.origins["longest_edge"] == Origin("file", f'{file} [models."demo"]')
    assert demo.origins["temperature"] == Origin("file", str(file))
    other = resolve({"model": "org/other"}, {}, file)
    assert (other.settings.longest_edge, other.settings.splitting) == (500, None)
    assert (other.settings.temperature, other.settings.dtype) == (0.9, "bfloat16")
    # A chat may change its model.
    assert demo.for_model("org/other").settings == other.settings
    assert demo.for_model("org/other").for_model("demo") == demo
    assert demo.for_model("third").settings == resolve({"model": "third"}, {}, file).settings


def test_flags_and_variables_win_over_the_table_of_a_model(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(MODEL_TABLES, encoding="utf-8")
    given = resolve({"longest_edge": 300}, {"IDEFICS_SPLITTING": "on"}, file)
    for resolved in (given, given.for_model("org/other").for_model("demo")):
        assert (resolved.settings.longest_edge, resolved.settings.splitting) == (300, True)
        assert resolved.origins["splitting"].source == "environment"
