"""Scripts that let a scheduler run all shards: a SLURM job array, and a Kubernetes job."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from string import Template
from types import MappingProxyType

from idefics_cli.core.errors import UsageError

# Seconds that a task has for its current batch after the scheduler has asked it to end.
_GRACE_SECONDS = 120


# Exit code 3 means that pictures failed, and 2 a wrong command: to repeat either is of no use.
_MANIFEST = Template(
    """\
apiVersion: batch/v1
kind: Job
metadata:
  name: idefics
spec:
  completionMode: Indexed
  completions: $count
  parallelism: $count
  backoffLimitPerIndex: 3
  podFailurePolicy:
    rules:
    - action: Ignore
      onPodConditions: [{type: DisruptionTarget}]
    - action: FailIndex
      onExitCodes: {containerName: idefics, operator: In, values: [2, 3]}
  template:
    spec:
      restartPolicy: Never
      terminationGracePeriodSeconds: $grace
      containers:
      - name: idefics
        image: registry.example/idefics-cli:latest
        workingDir: $folder
        command: [$words]
        resources:
          limits: {${gpus}cpu: "8", memory: 32Gi}
        volumeMounts:
        - {name: work, mountPath: $folder}
      volumes:
      - name: work
        persistentVolumeClaim: {claimName: idefics}
"""
)


@dataclass(frozen=True, slots=True)
class ShardedCommand:
    """A command whose shards a scheduler runs.

    Attributes:
        words: The command with `--shard auto/N`.
        count: Number of shards.
        folder: Absolute path of the folder in which it runs.
        output: The output as the user named it; None for sidecars, which need no collecting.
        model: Name of the model; empty if it needs no download.
        gpus: Number of GPUs of each task.
    """

    words: Sequence[str]
    count: int
    folder: str
    output: str | None
    model: str
    gpus: int

    @property
    def remarks(self) -> list[str]:
        """What to do before and after the job, one line each."""
        lines = []
        if self.model:
            pull = f"idefics models pull {shlex.quote(self.model)}"
            lines.append(f"Before: `{pull}`, with the HF_HOME that the tasks have.")
        if self.output is not None:
            lines.append(f"After: `idefics collect {shlex.quote(self.output)}`.")
        return lines


def slurm_script(command: ShardedCommand) -> str:
    """Return a script for `sbatch`; each task of its array is a shard."""
    remarks = [
        f"{command.count} tasks; each captions its part of the pictures. Submit it with `sbatch`.",
        *command.remarks,
        "To repeat some tasks, such as 3 and 7: `sbatch --array=3,7`. Each continues its part.",
    ]
    options = [
        "--job-name=idefics",
        f"--array=0-{command.count - 1}",
        "--nodes=1",
        "--ntasks=1",
        "--cpus-per-task=8",
        "--mem=32G",
        *([f"--gres=gpu:{command.gpus}"] if command.gpus else []),
        "--time=08:00:00",
        "--requeue",
        f"--signal=B:TERM@{_GRACE_SECONDS}",
        "--output=idefics-%A_%a.log",
    ]
    return "\n".join(
        [
            "#!/bin/bash",
            *(f"# {_one_line(line)}" for line in remarks),
            *(f"#SBATCH {option}" for option in options),
            "",
            "set -euo pipefail",
            f"cd -- {shlex.quote(command.folder)}",
            "command -v idefics >/dev/null || {",
            "  echo 'idefics is not on PATH: activate its environment before sbatch' >&2",
            "  exit 127",
            "}",
            "# With exec, SIGTERM before the time limit reaches idefics, which finishes its batch.",
            f"exec {shlex.join(command.words)}",
            "",
        ]
    )


def kubernetes_manifest(command: ShardedCommand) -> str:
    """Return an indexed job of Kubernetes 1.33 or later; each index is a shard.

    Raises:
        UsageError: If a word is not UTF-8.
    """
    remarks = [
        f"{command.count} indices; each captions its part of the pictures.",
        "Edit the image, the claim and the resources; then `kubectl apply -f FILE`.",
        *command.remarks,
    ]
    gpus = f'nvidia.com/gpu: "{command.gpus}", ' if command.gpus else ""
    body = _MANIFEST.substitute(
        count=command.count,
        grace=_GRACE_SECONDS,
        folder=_text(command.folder),
        words=", ".join(map(_text, command.words)),
        gpus=gpus,
    )
    return "".join(f"# {_one_line(line)}\n" for line in remarks) + body


JOB_SCRIPTS: Mapping[str, Callable[[ShardedCommand], str]] = MappingProxyType(
    {"slurm": slurm_script, "k8s": kubernetes_manifest}
)
"""The scripts by the name of their scheduler."""


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _text(word: str) -> str:
    """Return *word* as a string of YAML, of which JSON is a part."""
    try:
        word.encode()
    except UnicodeEncodeError:
        raise UsageError(
            "a manifest cannot have a name that is not UTF-8", hint="rename the file or folder"
        ) from None
    return json.dumps(word, ensure_ascii=False)
