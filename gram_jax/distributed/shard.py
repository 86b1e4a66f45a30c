"""The share of one process in work that needs no communication, from an option or the launcher's variables."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from gram_jax.distributed.cluster import detect_cluster
from gram_jax.errors import ClusterError

AUTO = "auto"


@dataclass(frozen=True)
class ShardPlace:
    """Shard `index` of `count`, from 0 to count - 1."""

    index: int
    count: int


def find_shard(text: str, environment: Mapping[str, str], *, in_group: bool = False) -> ShardPlace:
    """The shard of "I/N", or for "auto" that of the launcher's variables.

    auto: tasks of a Slurm array, of a Slurm step, or of both (each task of the array has a step of several), hosts of a
    TPU pod, indices of a Kubernetes job, or GRAM_JAX_PROCESS of GRAM_JAX_PROCESSES. in_group: the processes of the
    step, pod or job are one shard, so auto is the task of a Slurm array. Raises ClusterError for another form, a number
    out of range, and if no launcher is found.

    >>> find_shard("2/8", {})
    ShardPlace(index=2, count=8)
    >>> array = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_COUNT": "3"}
    >>> find_shard("auto", array | {"SLURM_ARRAY_TASK_STEP": "3"})
    ShardPlace(index=2, count=3)
    """
    if text != AUTO:
        match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
        if match is None or int(match[1]) >= int(match[2]):
            raise ClusterError(
                f"--shard {text!r}: expected I/N with I from 0 to N - 1, such as 0/8 to 7/8, or auto"
            )
        return ShardPlace(int(match[1]), int(match[2]))
    found = [_array(environment), None if in_group else _processes(environment)]
    places = [place for place in found if place]
    if not places and in_group:
        raise ClusterError(
            "--shard auto: processes that share the weights are one shard: expected variables of a Slurm array, found "
            "none. Give the shard as --shard I/N"
        )
    if not places:
        raise ClusterError(
            "--shard auto: expected the variables of a Slurm array or step of several tasks, of a TPU pod, or "
            "GRAM_JAX_PROCESS and GRAM_JAX_PROCESSES; found none. Give the shard as --shard I/N"
        )
    index, count = 0, 1
    for place in places:
        index, count = index * place.count + place.index, count * place.count
    return ShardPlace(index, count)


def _array(env: Mapping[str, str]) -> ShardPlace | None:
    """The task of a Slurm array, of which some tasks may be submitted again by themselves."""
    if "SLURM_ARRAY_TASK_ID" not in env:
        return None
    task = _number(env, "SLURM_ARRAY_TASK_ID")
    first = _number(env, "SLURM_ARRAY_TASK_MIN")
    step = _number(env, "SLURM_ARRAY_TASK_STEP") if env.get("SLURM_ARRAY_TASK_STEP") else 1
    count = _number(env, "SLURM_ARRAY_TASK_COUNT")
    index, rest = divmod(task - first, max(1, step))
    if rest or not 0 <= index < count:
        raise ClusterError(
            f"--shard auto: task {task} of a Slurm array of {count} tasks from {first} in steps of {step}: give the "
            "shard as --shard I/N if only some tasks are run"
        )
    return ShardPlace(index, count)


def _processes(env: Mapping[str, str]) -> ShardPlace | None:
    for index, count in (
        ("GRAM_JAX_PROCESS", "GRAM_JAX_PROCESSES"),
        ("JOB_COMPLETION_INDEX", "GRAM_JAX_PROCESSES"),
    ):
        if env.get(index) and env.get(count):
            place = ShardPlace(_number(env, index), _number(env, count))
            if place.index >= place.count:
                raise ClusterError(f"{index} = {place.index}: expected less than {count}")
            return place
    found = detect_cluster(None, None, None, None, env)
    return None if found is None else ShardPlace(found.index, found.count)


def _number(env: Mapping[str, str], name: str) -> int:
    value = env.get(name, "").strip()
    if not value.isdecimal():
        raise ClusterError(f"{name} = {value!r}: expected a number")
    return int(value)
