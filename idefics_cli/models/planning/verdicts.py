"""What self-checks of this machine found: files that plans read, one for each device.

A verdict holds for a device with its driver, the versions of the libraries, and the instruction
sets of the processor. If one of them changes, there is no verdict until the next check.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

from idefics_cli.core.files import read_regular_file, write_whole
from idefics_cli.core.json_text import parse_json
from idefics_cli.core.paths import display_path
from idefics_cli.hardware.machine import Machine

_FORMAT = 1
_LIMIT_BYTES = 2**20
_MOST_SPEED = 1000
_PACKAGES = ("idefics-cli", "torch", "transformers", "bitsandbytes", "llvmlite")


@dataclass(frozen=True, slots=True)
class Fault:
    """A way to compute that gave wrong results.

    Attributes:
        device: "cpu", "mps" or "cuda:N".
        found: What was wrong, in words.
        dtype: Dtype for which this holds; None means any.
        attention: Attention for which this holds; None means any.
        quantization: Quantization for which this holds; None means any.
        format_4bit: Format of 4-bit weights for which this holds; None means any.
        kernel: The kernel of `KERNELS` that is wrong; None if the fault is not in a single kernel.
        with_graphs: Whether this holds only with CUDA graphs.
        heads: "HEADSxKV_HEADSxWIDTH" of the text models for which this holds; None means any.
    """

    device: str
    found: str
    dtype: str | None = None
    attention: str | None = None
    quantization: str | None = None
    format_4bit: str | None = None
    kernel: str | None = None
    with_graphs: bool = False
    heads: str | None = None

    @property
    def subject(self) -> str:
        """What is wrong, in words: a kernel, or a device with the choices for it."""
        if self.kernel is not None:
            return f"the kernel `{self.kernel}`"
        parts = (self.dtype, self.attention, self.quantization, self.format_4bit)
        words = [part for part in parts if part not in (None, "none")]
        if self.with_graphs:
            words.append("CUDA graphs")
        return " ".join([*map(str, words), "on", self.device])


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of the last check of one device.

    Attributes:
        device: "cpu", "mps" or "cuda:N".
        made: Date and time in UTC, as in "2026-11-29 01:30".
        is_whole: Whether all ways were checked; False if only attention was.
        heads: "HEADSxKV_HEADSxWIDTH" of the text models whose attention was checked.
        faults: What was wrong.
        speeds: As `Machine.measured_speeds`; empty if nothing was measured.
    """

    device: str
    made: str
    is_whole: bool
    heads: tuple[str, ...] = ()
    faults: tuple[Fault, ...] = ()
    speeds: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verdicts:
    """The verdicts of all devices of a machine.

    Attributes:
        by_device: The verdict of each device that has one.
        notes: Files that are ignored, in words for a user.
    """

    by_device: Mapping[str, Verdict]
    notes: tuple[str, ...] = ()

    @property
    def faults(self) -> tuple[Fault, ...]:
        """The faults of all devices."""
        return tuple(fault for verdict in self.by_device.values() for fault in verdict.faults)

    def with_speeds(self, machine: Machine) -> Machine:
        """Return *machine* with the speeds that its check measured, if there was one."""
        verdict = self.by_device.get("cpu")
        return machine if verdict is None else replace(machine, measured_speeds=verdict.speeds)


NO_VERDICTS = Verdicts({})


def devices_of(machine: Machine) -> tuple[str, ...]:
    """Return the devices of *machine* that have a verdict of their own."""
    gpus = tuple(f"cuda:{gpu.index}" for gpu in machine.gpus)
    return ("cpu", *gpus, *(("mps",) if machine.mps_bytes is not None else ()))


def read_verdicts(folder: Path, machine: Machine) -> Verdicts:
    """Return the verdicts in *folder* that hold for *machine*; other files there are ignored."""
    found: dict[str, Verdict] = {}
    notes = []
    for device in devices_of(machine):
        key = _key(device, machine)
        path = _path(folder, key)
        try:
            found[device] = _parsed(read_regular_file(path, limit_bytes=_LIMIT_BYTES), key)
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            notes.append(
                f"the check of {device} in {display_path(path)} is ignored: {why}; "
                "`idefics doctor --check` makes a new one"
            )
    return Verdicts(found, tuple(notes))


def write_verdict(folder: Path, verdict: Verdict, machine: Machine) -> None:
    """Keep *verdict* in *folder* in place of an earlier one.

    Raises:
        OSError: If the file cannot be written.
    """
    key = _key(verdict.device, machine)
    folder.mkdir(parents=True, exist_ok=True)
    content = {"format": _FORMAT, "key": key, "verdict": asdict(verdict)}
    write_whole(_path(folder, key), json.dumps(content, indent=1).encode(), durable=False)


def find_kernel_faults(faults: Collection[Fault], device: str) -> dict[str, Fault]:
    """Return the faults of single kernels on *device*, by the name of the kernel."""
    return {f.kernel: f for f in faults if f.kernel is not None and f.device == device}


def _key(device: str, machine: Machine) -> dict[str, str]:
    """Return all that a verdict on *device* depends on."""
    key = {"device": device, "platform": machine.platform, "build": str(machine.torch_build)}
    key |= {name: machine.versions.get(name) or "" for name in _PACKAGES}
    if device.startswith("cuda:"):
        gpu = next(gpu for gpu in machine.gpus if f"cuda:{gpu.index}" == device)
        return key | {"name": gpu.name, "driver": machine.driver}
    flags = " ".join(sorted(machine.cpu_flags))
    digest = hashlib.sha256(flags.encode()).hexdigest()[:16]
    return key | {
        "name": machine.cpu_name,
        "flags": digest,
        "torch_cpu_capability": machine.torch_cpu_capability,
    }


def _path(folder: Path, key: Mapping[str, str]) -> Path:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    return folder / f"{key['device'].replace(':', '-')}-{digest}.json"


def _parsed(content: bytes, key: Mapping[str, str]) -> Verdict:
    """Return the verdict in *content*.

    Raises:
        ValueError: If it is damaged, or was made for another machine.
    """
    found = parse_json(content)
    if not isinstance(found, dict) or found.get("format") != _FORMAT:
        raise ValueError("it has an unknown format")
    if found.get("key") != key:
        raise ValueError("it was made for another device, driver or version")
    record = found.get("verdict")
    if not isinstance(record, dict) or record.get("device") != key["device"]:
        raise ValueError("it is damaged")
    heads, faults = record.get("heads"), record.get("faults")
    made, is_whole = record.get("made"), record.get("is_whole")
    if not (isinstance(heads, list) and all(isinstance(each, str) for each in heads)):
        raise ValueError("it is damaged")
    if not isinstance(faults, list) or not isinstance(made, str) or not isinstance(is_whole, bool):
        raise ValueError("it is damaged")
    device = key["device"]
    # An earlier version of this tool kept no speeds.
    speeds = _speeds(record.get("speeds", {}))
    return Verdict(device, made, is_whole, tuple(heads), _faults(faults, device), speeds)


def _speeds(record: object) -> dict[str, tuple[float, float]]:
    if not isinstance(record, dict):
        raise ValueError("it is damaged")
    found = {}
    for name, pair in record.items():
        if not isinstance(pair, list) or len(pair) != 2:
            raise ValueError("it is damaged")
        if not all(
            type(speed) is float and 1 / _MOST_SPEED < speed < _MOST_SPEED for speed in pair
        ):
            raise ValueError("it is damaged")
        found[str(name)] = (pair[0], pair[1])
    return found


def _faults(records: Sequence[object], device: str) -> tuple[Fault, ...]:
    names = {field.name for field in fields(Fault)}
    found = []
    for record in records:
        if not isinstance(record, dict) or record.keys() != names or record["device"] != device:
            raise ValueError("it is damaged")
        texts = [value for name, value in record.items() if name != "with_graphs"]
        if not all(value is None or isinstance(value, str) for value in texts):
            raise ValueError("it is damaged")
        if not isinstance(record["with_graphs"], bool) or record["found"] is None:
            raise ValueError("it is damaged")
        found.append(Fault(**record))
    return tuple(found)
