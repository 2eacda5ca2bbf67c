"""The command `llm`, and the client of OpenAI for Node.js, where they are installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from base64 import b64encode
from pathlib import Path

import pytest

from idefics_cli.core.types import Attachment, GenerationRequest, Message
from idefics_cli.demo.samples import write_samples
from idefics_cli.engine.local.engine import LocalEngine
from tests.support.http_servers import HttpServer

QUESTION = "Describe this image."
LLM = shutil.which("llm")
NODE = shutil.which("node")
MODULES = os.environ.get("OPENAI_NODE", "")

SCRIPT = """
import { createRequire } from "module"; import fs from "fs";
const { OpenAI } = createRequire(process.argv[2] + "/")("openai");
const client = new OpenAI({ baseURL: process.argv[3], apiKey: "none", maxRetries: 0 });
const url = "data:image/png;base64," + fs.readFileSync(process.argv[4]).toString("base64");
const picture = { type: "image_url", image_url: { url } };
const content = [picture, { type: "text", text: process.argv[5] }];
const body = { model: "demo", messages: [{ role: "user", content }] };
const whole = await client.chat.completions.create(body);
let text = "";
for await (const chunk of await client.chat.completions.create({ ...body, stream: true }))
  text += chunk.choices[0]?.delta?.content ?? "";
let error = null;
try { await client.chat.completions.create({ ...body, tools: [{}] }); } catch (e) { error = e; }
const endless = { ...body, stream: true, ignore_eos: true, max_tokens: 400 };
const stream = await client.chat.completions.create(endless);
for await (const chunk of stream) { stream.controller.abort(); break; }
console.log(JSON.stringify({
  whole: whole.choices[0].message.content, text,
  error: [error?.status, error?.code, error?.param],
}));
"""


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    (sample,) = write_samples(tmp_path, count=1, seed=4)
    return tmp_path / sample.file_name


def description(engine: LocalEngine, picture: Path) -> str:
    uri = "data:image/png;base64," + b64encode(picture.read_bytes()).decode()
    request = GenerationRequest((Message("user", (Attachment(uri), QUESTION)),))
    return engine.complete([engine.prepare(request)])[0].text


@pytest.mark.skipif(LLM is None, reason="needs the command llm")
@pytest.mark.parametrize("option", ["--stream", "--no-stream"])
def test_llm_describes_a_picture(
    demo: HttpServer, demo_engine: LocalEngine, picture: Path, tmp_path: Path, option: str
) -> None:
    assert LLM is not None
    given = [] if option == "--stream" else [option]
    ran = subprocess.run(
        [
            LLM,
            "openai",
            "endpoint",
            f"{demo.url}/v1",
            "-m",
            "demo",
            *given,
            QUESTION,
            "-a",
            picture,
        ],
        env={**os.environ, "LLM_USER_PATH": str(tmp_path / "llm")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ran.returncode, ran.stdout.strip()) == (0, description(demo_engine, picture)), (
        ran.stderr
    )


@pytest.mark.skipif(not (NODE and MODULES), reason="needs node, and openai in $OPENAI_NODE")
def test_the_client_for_node_gets_answers_errors_and_may_leave(
    demo: HttpServer, demo_engine: LocalEngine, picture: Path, tmp_path: Path
) -> None:
    assert NODE is not None
    script = tmp_path / "ask.mjs"
    script.write_text(SCRIPT)
    ran = subprocess.run(
        [NODE, script, MODULES, f"{demo.url}/v1", picture, QUESTION],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 0, ran.stderr
    text = description(demo_engine, picture)
    assert json.loads(ran.stdout) == {
        "whole": text,
        "text": text,
        "error": [400, "unsupported_parameter", "tools"],
    }
    demo.wait_until_idle()
