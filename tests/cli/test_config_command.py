"""`idefics config`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from idefics_cli.cli.services import Services
from idefics_cli.config.resolve import resolve
from idefics_cli.config.settings import Settings
from tests.support.commands import run


def services(tmp_path: Path, **environ: str) -> Services:
    return Services(environ={"HOME": str(tmp_path), **environ}, stdin=None)


def test_the_listing_is_a_configuration_file_that_gives_the_same_settings(tmp_path: Path) -> None:
    environ = {"IDEFICS_TOP_K": "5", "IDEFICS_SYSTEM": 'say "hi"\n\t\x7f\\ ☃', "IDEFICS_SEED": "0"}
    ran = run("config", services=services(tmp_path, **environ))
    assert (ran.code, ran.err) == (0, "")
    file = tmp_path / "config.toml"
    file.write_text(ran.out, encoding="utf-8")
    here = resolve({}, environ, tmp_path / "none").settings
    assert resolve({}, {}, file).settings == here
    assert here != Settings()


def test_the_listing_tells_the_origin_of_each_value(tmp_path: Path) -> None:
    file = tmp_path / "my.toml"
    file.write_text("temperature = 0.5\n")
    ran = run("config", services=services(tmp_path, IDEFICS_CONFIG=str(file), IDEFICS_TOP_K="5"))
    assert (ran.code, ran.err) == (0, "")
    lines = {line.split(" ")[0]: line for line in ran.out.splitlines()}
    assert ran.out.startswith(f"# {file}\n")
    assert lines["temperature"] == f"temperature = 0.5                         # {file}"
    assert lines["top_k"] == "top_k = 5                                 # IDEFICS_TOP_K"
    assert lines["top_p"] == "top_p = 1.0                               # default"
    assert "# max_new_tokens: 512, captions 256       # default" in ran.out.splitlines()
    assert "# overwrite: only as --overwrite          # default" in ran.out.splitlines()


def test_json_tells_value_source_and_name_of_every_setting(tmp_path: Path) -> None:
    ran = run("config", "--json", services=services(tmp_path, HF_HUB_OFFLINE="1"))
    assert (ran.code, ran.err) == (0, "")
    record = ran.record
    assert record["file"] == str(tmp_path / ".config/idefics/config.toml")
    assert record["exists"] is False
    assert list(record["settings"]) == [field.name for field in dataclasses.fields(Settings)]
    assert record["settings"]["offline"] == {
        "value": True,
        "source": "environment",
        "name": "HF_HUB_OFFLINE",
    }
    assert record["settings"]["json"] == {"value": True, "source": "flag", "name": "--json"}
    assert record["settings"]["seed"] == {"value": None, "source": "default", "name": None}


def test_path_follows_xdg_and_our_variable(tmp_path: Path) -> None:
    home = services(tmp_path)
    xdg = services(tmp_path, XDG_CONFIG_HOME="/xdg")
    ours = services(tmp_path, XDG_CONFIG_HOME="/xdg", IDEFICS_CONFIG="/my.toml")
    outs = [run("config", "path", services=s).out for s in (home, xdg, ours)]
    assert outs == [
        f"{tmp_path}/.config/idefics/config.toml\n",
        "/xdg/idefics/config.toml\n",
        "/my.toml\n",
    ]


def test_path_works_while_the_file_is_broken(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("nonsense")
    broken = services(tmp_path, IDEFICS_CONFIG=str(file))
    assert tuple(run("config", "path", services=broken)) == (0, f"{file}\n", "")
    assert run("config", services=broken).code == 2


def test_the_server_local_is_shown_as_it_is_given(tmp_path: Path) -> None:
    file = tmp_path / "my.toml"
    file.write_text('server = "local"')
    for environ, origin in (
        ({"IDEFICS_SERVER": "local"}, "IDEFICS_SERVER"),
        ({"IDEFICS_CONFIG": str(file)}, str(file)),
    ):
        given = services(tmp_path, **environ)
        lines = [" ".join(line.split()) for line in run("config", services=given).out.splitlines()]
        assert f'server = "local" # {origin}' in lines
        shown = run("config", "--json", services=given).record["settings"]["server"]
        assert (shown["value"], shown["name"]) == ("local", origin)


def test_a_misspelt_variable_is_a_warning(tmp_path: Path) -> None:
    ran = run("config", "path", services=services(tmp_path, IDEFICS_TOPK="1"))
    assert ran.err == ""
    ran = run("config", services=services(tmp_path, IDEFICS_TOPK="1"))
    assert ran.err == "warning: unknown variable IDEFICS_TOPK; did you mean IDEFICS_TOP_K?\n"
    ran = run("config", services=services(tmp_path, IDEFICS_TOPK="1", IDEFICS_QUIET="1"))
    assert (ran.code, ran.err) == (0, "")


def test_a_table_of_an_unknown_model_is_a_warning(tmp_path: Path) -> None:
    file = tmp_path / "my.toml"
    (tmp_path / "own").mkdir()
    known = ("demo", "SmolVLM-256m", "someone/else", str(tmp_path / "own"))
    file.write_text("".join(f'[models."{name}"]\nseed = 1\n' for name in known))
    environ = {"IDEFICS_CONFIG": str(file)}
    assert run("config", services=services(tmp_path, **environ)).err == ""

    file.write_text('[models."smolvlm-256"]\nseed = 1\n[models."x"]\n')
    ran = run("config", services=services(tmp_path, **environ))
    assert ran.code == 0
    words = " ".join(ran.err.split())
    assert 'warning: `[models."smolvlm-256"]` in' in words
    assert "unknown model `smolvlm-256`; did you mean `smolvlm-256m` or" in words
    assert "unknown model `x`; `idefics models` lists the names" in words

    # A server may have a model of any name.
    environ["IDEFICS_SERVER"] = "http://127.0.0.1:9"
    assert run("config", services=services(tmp_path, **environ)).err == ""
