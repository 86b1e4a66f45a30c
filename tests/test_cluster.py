"""Which process of a job this is: from options, Slurm's variables or those of a TPU pod."""

import pytest

from gram_jax.distributed.cluster import (
    ClusterSpec,
    detect_cluster,
    expand_node_list,
    parse_device_ids,
    tpu_vm_variables,
)
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
            SLURM | {"CUDA_VISIBLE_DEVICES": "0,1,2,3"},
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
