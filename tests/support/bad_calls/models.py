"""Models that cannot be loaded, and plans that this machine cannot run."""

from __future__ import annotations

from dataclasses import replace

from idefics_cli.core.errors import ModelError, PlanError
from tests.support.bad_calls.call import Call
from tests.support.machines import H100, RTX_2080_TI, VERSIONS, gpus

AGAIN = "copy or download it again"
AGAIN_FILE = "copy or download the file again"
NAMES = "`idefics models` lists the names; a Hub id `owner/name` or a local folder works too"
GGUF = "take the original checkpoint with `--quantization 4bit`; `idefics models` lists models"

ONE_H100, ONE_2080 = gpus(H100), gpus(RTX_2080_TI)
NO_4BIT = replace(ONE_H100, versions={**VERSIONS, "bitsandbytes": None})

# fmt: off
MODELS = (
    Call("ask x -m smolvlm", ModelError, "unknown model `smolvlm`",
        "did you mean `smolvlm-500m` or `smolvlm-256m` or `smolvlm-2.2b`?"),
    Call("ask x -m nosuch", ModelError, "unknown model `nosuch`", NAMES),
    Call("ask x -m ''", ModelError, "the name of the model is empty", NAMES),
    Call("ask x -m ./nosuch", ModelError, "there is no folder `./nosuch`",
        "give a folder, a Hub id `owner/name`, or a name from `idefics models`"),
    Call("ask x -m nosuch/model --offline", ModelError,
        "`nosuch/model` is not in the cache (...), and the network is switched off", "..."),
    Call("ask x -m smolvlm-256m --offline", ModelError,
        "`smolvlm-256m` (HuggingFaceTB/SmolVLM-256M-Instruct) is not in the cache ...",
        "..."),
    Call("ask x -m good.png", ModelError, "`good.png` is a file", "give the folder of the model"),
    Call("ask x -m model.gguf", ModelError,
        "`model.gguf` is a GGUF model, which this tool does not run", GGUF),
    Call("ask x -m models/gguf", ModelError,
        "`models/gguf` is a GGUF model, which this tool does not run", GGUF),
    Call("ask x -m models/no_config", ModelError, "`models/no_config` has no config.json", "..."),
    Call("ask x -m models/vacant", ModelError, "`models/vacant` has no config.json", "..."),
    Call("ask x -m models/adapter", ModelError,
        "the adapter `models/adapter` has no adapter_model.safetensors",
        "pickled `.bin` weights can run code, so they are not read; save the adapter again with a "
        "current PEFT"),
    Call("ask x --adapter models/adapter", ModelError,
        "the adapter `models/adapter` has no adapter_model.safetensors", "..."),
    Call("ask x -m demo --adapter models/no_config", ModelError,
        "`models/no_config` is no adapter: it has no adapter_config.json", "..."),
    Call("ask x -m demo --adapter good", ModelError,
        "there is no adapter `good`", "give a folder, or a Hub id `owner/name`"),
    Call("ask x -m models/broken_config", ModelError,
        "config.json of `models/broken_config` is not valid JSON",
        AGAIN_FILE),
    Call("ask x -m models/list_config", ModelError,
        "config.json of `models/list_config` holds no JSON object", AGAIN_FILE),
    Call("ask x -m models/no_type", ModelError,
        "config.json of `models/no_type` has no model_type", "..."),
    Call("ask x -m models/llava", ModelError,
        "`models/llava` is a model of type `llava`, which this tool does not run", "..."),
    Call("ask x -m models/no_weights", ModelError, "`models/no_weights` has no weights", "..."),
    Call("ask x -m models/pickled", ModelError,
        "`models/pickled` has no weights in the safetensors format", "..."),
    Call("ask x -m models/cut_weights", ModelError,
        "model.safetensors of `models/cut_weights` is cut short: 404 of 413 bytes", AGAIN),
    Call("ask x -m models/no_safetensors", ModelError,
        "model.safetensors of `models/no_safetensors` is not a safetensors file", AGAIN),
    Call("ask x -m models/lfs", ModelError,
        "model.safetensors of `models/lfs` is a Git LFS pointer, not the weights",
        "run `git lfs pull` in the folder"),
    Call("ask x -m models/no_tokenizer", ModelError, "`models/no_tokenizer` has no tokenizer.json",
        "..."),
    Call("ask x -m models/no_images", ModelError,
        "`models/no_images` has no preprocessor_config.json", "..."),
    Call("ask x -m models/gptq", ModelError,
        "the weights of `models/gptq` are quantized with gptq, which this tool does not read",
        "take the plain checkpoint with `--quantization 4bit`"),
    Call("caption good.png -m nosuch", ModelError, "unknown model `nosuch`", NAMES),
    Call("caption good.png -m models/lfs", ModelError,
        "model.safetensors of `models/lfs` is a Git LFS pointer, not the weights", "..."),
    Call("models pull nosuch", ModelError, "unknown model `nosuch`", NAMES),
    Call("models pull ''", ModelError, "the name of the model is empty", NAMES),
    Call("models path nosuch", ModelError, "unknown model `nosuch`", NAMES),
    Call("models path ''", ModelError, "the name of the model is empty", NAMES),
    Call("models pull smolvlm-256m --offline", ModelError,
        "`smolvlm-256m` (HuggingFaceTB/SmolVLM-256M-Instruct) is not in the cache ...",
        "..."),
    Call("models pull models/base", ModelError,
        "`models/base` is a local folder and needs no download"),
    Call("models pull models/vacant", ModelError, "`models/vacant` has no config.json", "..."),
    Call("models path smolvlm-256m", ModelError, "`smolvlm-256m` is not in the cache (...)",
        "`idefics models pull smolvlm-256m` downloads it"),
    Call("models path model.gguf", ModelError,
        "`model.gguf` is a GGUF model, which this tool does not run", GGUF),
    Call("ask x -m demo --device cuda", PlanError,
        "`--device cuda` needs another torch: 2.13.0 is built for the CPU", "..."),
    Call("ask x -m demo --device cuda:3", PlanError, "there is no `cuda:3`",
        "this machine has cuda:0 (H100)", machine=ONE_H100),
    Call("ask x -m demo --device mps", PlanError, "there is no Apple GPU that torch can use",
        "`--device auto` uses what there is"),
    Call("ask x -m demo --quantization 4bit", PlanError, "`4bit` needs the package bitsandbytes",
        "pip install bitsandbytes; or `--device cpu`, which needs no package", machine=NO_4BIT),
    Call("ask x -m demo --attention flash_attention_2", PlanError,
        "`flash_attention_2` needs a CUDA GPU", "`--attention sdpa` needs nothing and is exact"),
    Call("ask x -m demo --attention flash_attention_2", PlanError,
        "`flash_attention_2` needs an NVIDIA GPU of the Ampere ..., and cuda is a RTX 2080 Ti",
        "`--attention sdpa` needs nothing and is exact", machine=ONE_2080),
    Call("ask x -m idefics-80b-instruct --dtype float32", PlanError,
        "`idefics-80b-instruct` with `--dtype float32` needs ... free memory are usable", "..."),
    Call("caption good.png -m idefics2-8b --dtype float32", PlanError,
        "`idefics2-8b` with `--dtype float32` needs ... free memory are usable", "..."),
    Call("caption good.png -m demo --device mps --dry-run", PlanError,
        "there is no Apple GPU that torch can use", "`--device auto` uses what there is"),
)
# fmt: on
