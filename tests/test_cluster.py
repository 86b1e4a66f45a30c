"""Which process of a job this is: from options, Slurm's variables or those of a TPU pod."""

import pytest

from gram_jax.distributed.cluster import (
    ClusterSpec,
    detect_cluster,
    expand_counts,
    expand_node_list,
    parse_device_ids,
    tpu_vm_variables,
)
from gram_jax.distributed.shard import ShardPlace, find_shard
from gram_jax.errors import ClusterError

SLURM = {
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_STEP_NODELIST": "n[03-04]",
    "SLURM_JOB_ID": "5",
}
POD = {"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        # in the batch script itself, outside of any step
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_JOB_ID": "5"}, None),
        (
            SLURM,
            ClusterSpec(1, 2, "n03", 16394, ("n03", "n04")),
        ),
        (
            SLURM
            | {
                "SLURM_STEP_NUM_TASKS": "4",
                "SLURM_PROCID": "3",
                "SLURM_LOCALID": "1",
                "SLURM_JOB_ID": "8197",
                "CUDA_VISIBLE_DEVICES": "0,1",
            },
            ClusterSpec(3, 4, "n03", 16394, devices=(1,)),
        ),
        (POD, ClusterSpec(1, 2, "a", 12380, ("a", "b"))),
        ({"TPU_WORKER_HOSTNAMES": "a", "TPU_WORKER_ID": "0"}, None),
        (
            {
                "TPU_WORKER_HOSTNAMES": "c,d",
                "TPU_WORKER_ID": "1",
                "MEGASCALE_NUM_SLICES": "2",
                "MEGASCALE_SLICE_ID": "1",
                "MEGASCALE_COORDINATOR_ADDRESS": "a:8080",
            },
            ClusterSpec(3, 4, "a", 12380),
        ),
    ],
)
def test_the_process_is_found_in_the_variables_of_slurm_and_tpu_pods(environment, expected):
    assert detect_cluster(None, None, None, None, environment) == expected


# Recorded in steps of Slurm 22.05.8 (tests/real_slurm.py), on nodes of 4 GPUs and one of 8:
# tasks of each node, GPUs of the job on this node, node, task of the node, GPUs it sees, those it uses, number idle.
STEPS = [
    # --ntasks-per-node=1 --gpus-per-node=4
    ("1(x2)", 4, 1, 0, "0,1,2,3", (0, 1, 2, 3), 0),
    # --ntasks-per-node=4 --gpus-per-node=4: every task sees all
    ("4(x2)", 4, 0, 0, "0,1,2,3", (0,), 0),
    ("4(x2)", 4, 1, 3, "0,1,2,3", (3,), 0),
    # with two and with three tasks
    ("2(x2)", 4, 1, 1, "0,1,2,3", (2, 3), 0),
    ("3(x2)", 4, 0, 0, "0,1,2,3", (0,), 1),
    # --ntasks-per-node=2 --gpus-per-task=2: a task sees its own, which it numbers from 0
    ("2(x2)", 4, 0, 0, "0,1", (0, 1), 0),
    ("2(x2)", 4, 1, 1, "2,3", (0, 1), 0),
    # --gpus-per-node=4 --gpu-bind=single:2: both tasks see GPU 0
    ("2(x3)", 4, 2, 0, "0", (0,), 2),
    ("2(x3)", 4, 2, 1, "0", (0,), 0),
    # --ntasks=6 --gpus=12: Slurm gives the larger node five tasks
    ("5,1", 8, 0, 0, "0,1,2,3,4,5,6,7", (0,), 3),
    ("5,1", 8, 0, 4, "0,1,2,3,4,5,6,7", (4,), 0),
    ("5,1", 4, 1, 0, "0,1,2,3", (0, 1, 2, 3), 0),
    # --gpus-per-node=4 --gpu-bind=none: no variable on a node of several tasks
    ("3,1", 4, 0, 2, "", (2,), 0),
    ("3,1", 4, 1, 0, "0,1,2,3", (0, 1, 2, 3), 0),
    # MIG devices, as NVML names them; not recorded
    ("2(x2)", 2, 0, 1, "MIG-b", (0,), 0),
    ("1(x2)", 2, 0, 0, "MIG-a,MIG-b", (0,), 1),
]


def step_environment(counts: str, gpus: int, node: int, local: int, visible: str) -> dict[str, str]:
    tasks = expand_counts(counts)
    found = {
        "SLURM_JOB_ID": "5",
        "SLURM_STEP_NUM_TASKS": str(max(2, sum(tasks))),
        "SLURM_PROCID": str(sum(tasks[:node]) + local),
        "SLURM_LOCALID": str(local),
        "SLURM_NODEID": str(node),
        "SLURM_STEP_NODELIST": ",".join(["big", "n1", "n2"][: len(tasks)]),
        "SLURM_STEP_TASKS_PER_NODE": counts,
        "SLURM_GPUS_ON_NODE": str(gpus),
    }
    return found | ({"CUDA_VISIBLE_DEVICES": visible} if visible else {})


@pytest.mark.parametrize(("counts", "gpus", "node", "local", "visible", "devices", "idle"), STEPS)
def test_a_task_takes_the_gpus_that_slurm_gives_it_and_idle_ones_are_counted(
    counts, gpus, node, local, visible, devices, idle, caplog
):
    env = step_environment(counts, gpus, node, local, visible)
    assert detect_cluster(None, None, None, None, env).devices == devices
    assert [record.getMessage().split()[0] for record in caplog.records] == [str(idle)] * (idle > 0)


@pytest.mark.parametrize("stated", ["2", "a100:2"])
def test_gpus_per_task_state_the_gpus_of_a_node_if_slurm_does_not(stated):
    env = step_environment("4(x2)", 8, 0, 3, "0,1") | {"SLURM_GPUS_PER_TASK": stated}
    del env["SLURM_GPUS_ON_NODE"]
    assert detect_cluster(None, None, None, None, env).devices == (0, 1)


@pytest.mark.parametrize(
    ("counts", "gpus", "visible", "named"),
    [
        ("4(x2)", 2, "0,1", "--ntasks-per-node=2"),
        ("2(x2)", 2, "MIG-a,MIG-b", "--gpus-per-task=1"),
        ("2(y)", 2, "0,1", "SLURM_STEP_TASKS_PER_NODE"),
    ],
)
def test_tasks_without_a_gpu_of_their_own_are_refused(counts, gpus, visible, named):
    env = step_environment("2(x2)", gpus, 0, 1, visible) | {"SLURM_STEP_TASKS_PER_NODE": counts}
    with pytest.raises(ClusterError, match=named):
        detect_cluster(None, None, None, None, env)


def test_the_metadata_of_a_tpu_vm_give_the_variables_of_gke():
    attributes = {
        "agent-worker-number": "1",
        "worker-network-endpoints": "unknown:unknown:10.0.0.2,unknown:unknown:10.0.0.3",
        "tpu-env": "ZONE: 'x'\nMEGASCALE_NUM_SLICES: '2'\nMEGASCALE_SLICE_ID: '1'\n"
        "MEGASCALE_COORDINATOR_ADDRESS: '10.0.0.1:8080'\n",
    }
    found = tpu_vm_variables(attributes.__getitem__)
    assert detect_cluster(None, None, None, None, found) == ClusterSpec(3, 4, "10.0.0.1", 12380)
    attributes |= {"worker-network-endpoints": "a,b", "tpu-env": "ZONE: 'x'"}
    assert tpu_vm_variables(attributes.__getitem__) == POD

    def no_such_machine(key: str) -> str:
        raise OSError("no route")

    assert tpu_vm_variables(no_such_machine) == {}


def test_options_take_precedence_over_variables():
    assert detect_cluster("[::1]:5", 3, 2, (0,), SLURM) == ClusterSpec(2, 3, "::1", 5, devices=(0,))
    assert detect_cluster("h:5", 1, 0, None, SLURM) is None


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("h:1", 2, None), "--process"),
        (("h", 2, 0), "host:port"),
        (("h:99999", 2, 0), "host:port"),
        (("h:1", 2, 2), "from 0 to 1"),
    ],
)
def test_incomplete_or_impossible_options_are_refused(options, named):
    with pytest.raises(ClusterError, match=named):
        detect_cluster(*options, None, {})


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, "TPU_WORKER_ID"),
        (POD | {"TPU_WORKER_ID": "z"}, r"TPU_WORKER_ID = 'z'(.|\n)*from 0 to 1"),
        (POD | {"TPU_WORKER_ID": "2"}, r"TPU_WORKER_ID = '2'(.|\n)*from 0 to 1"),
        (POD | {"MEGASCALE_NUM_SLICES": "two"}, "MEGASCALE_NUM_SLICES = 'two'"),
        (
            POD | {"MEGASCALE_NUM_SLICES": "2"},
            "MEGASCALE_COORDINATOR_ADDRESS and MEGASCALE_SLICE_ID",
        ),
        ({"MEGASCALE_NUM_SLICES": "2"}, "TPU_WORKER_HOSTNAMES"),
        (SLURM | {"SLURM_PROCID": "x"}, "SLURM_PROCID = 'x'"),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "many"}, "SLURM_STEP_NUM_TASKS = 'many'"),
        (SLURM | {"SLURM_STEP_NODELIST": "n[a-b]"}, "SLURM_STEP_NODELIST"),
    ],
)
def test_a_bad_variable_is_named_with_the_option_that_ignores_it(environment, named):
    with pytest.raises(ClusterError, match=rf"{named}(.|\n)*--cluster none"):
        detect_cluster(None, None, None, None, environment)


def test_devices_are_different_numbers():
    assert parse_device_ids("0, 2") == (0, 2) and parse_device_ids(None) is None
    for text in ("-1", "0,0", "x", ""):
        with pytest.raises(ClusterError, match="different numbers"):
            parse_device_ids(text)


def test_node_lists_of_slurm_are_expanded():
    assert expand_node_list("a1") == ["a1"]
    assert expand_node_list("r[1-2]n[1-2]") == ["r1n1", "r1n2", "r2n1", "r2n2"]


ARRAY = {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_COUNT": "3"}
STEP = {
    "SLURM_JOB_ID": "7",
    "SLURM_PROCID": "1",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_NODELIST": "n[1-2]",
}


@pytest.mark.parametrize(
    ("text", "environment", "expected"),
    [
        ("0/1", {}, (0, 1)),
        (" 7/8 ", ARRAY, (7, 8)),
        ("auto", ARRAY | {"SLURM_ARRAY_TASK_STEP": "2"}, (2, 3)),
        ("auto", STEP, (1, 2)),
        ("auto", ARRAY | {"SLURM_ARRAY_TASK_STEP": "2"} | STEP, (5, 6)),
        ("auto", {"GRAM_JAX_PROCESS": "3", "GRAM_JAX_PROCESSES": "4"}, (3, 4)),
        ("auto", {"JOB_COMPLETION_INDEX": "0", "GRAM_JAX_PROCESSES": "2"}, (0, 2)),
        ("auto", {"TPU_WORKER_HOSTNAMES": "a,b,c", "TPU_WORKER_ID": "2"}, (2, 3)),
    ],
)
def test_a_shard_is_that_of_the_option_or_of_the_launcher(text, environment, expected):
    assert find_shard(text, environment) == ShardPlace(*expected)


@pytest.mark.parametrize(
    ("text", "environment", "named"),
    [
        ("8/8", {}, "8/8"),
        ("-1/8", {}, "I/N"),
        ("1", {}, "I/N"),
        ("auto", {}, "none"),
        ("auto", ARRAY, "array of 3 tasks"),  # task 5 of 1 to 3
        ("auto", ARRAY | {"SLURM_ARRAY_TASK_COUNT": "x"}, "SLURM_ARRAY_TASK_COUNT"),
        ("auto", {"GRAM_JAX_PROCESS": "4", "GRAM_JAX_PROCESSES": "4"}, "GRAM_JAX_PROCESS"),
    ],
)
def test_an_impossible_shard_is_refused(text, environment, named):
    with pytest.raises(ClusterError, match=named):
        find_shard(text, environment)
