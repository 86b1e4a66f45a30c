"""The manifests for Kubernetes: valid by the published schemas, with what a run needs."""

import copy
import importlib.util
import itertools
import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from launch_fakes import FOR_PEOPLE, LAUNCH, ROOT, START_AGAIN

pytestmark = pytest.mark.slow

FOLDER = LAUNCH / "kubernetes"
RENDER = FOLDER / "render.py"
WRITE, JUDGE = (
    str(ROOT / "configs" / f"smollm2-135m-{stage}.toml") for stage in ("pretrain", "finetune")
)
COMMON = f"--name judge-1 --image registry/gram-jax:1 --recipe {WRITE} --recipe {JUDGE}".split()
NODES = "--claim c --nodes"

MACHINES = {
    "one TPU host": "--tpu v5e:2x2",
    "TPU slice": "--tpu v5e:4x4",
    "TPU cube": "--tpu v5p:2x2x4 --slices 2 --set mesh.dcn.data=2",
    "TPU slices": "--tpu v6e:8x8 --slices 3 --set mesh.dcn.data=3 --spot",
    "hosts of eight chips": "--tpu v6e:2x4 --chips-per-host 8",
    "GPU nodes": "--nodes 4 --gpus 8 --gpu-type nvidia-h100-80gb",
    "one GPU": "--nodes 1 --gpus 1 --spot --cpu 8 --memory 64Gi",
    "CPUs": "--nodes 2",
}
FOLDERS = {
    "claim": "--claim share",
    "nfs": "--nfs 10.0.0.2:/share",
    "bucket": "--bucket b --service-account trainer --user 0",
}
CASES = list(itertools.product(MACHINES, FOLDERS))


@pytest.fixture(scope="module")
def module() -> Any:
    spec = importlib.util.spec_from_file_location("render", RENDER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def render(module: Any) -> Callable[..., tuple[dict, dict]]:
    def make(*arguments: str) -> tuple[dict, dict]:
        words = shlex.split(" ".join(arguments))
        config_map, jobset = yaml.safe_load_all(module.render(module.arguments([*COMMON, *words])))
        return config_map, jobset

    return make


def job_of(jobset: dict) -> dict:
    (replicated,) = jobset["spec"]["replicatedJobs"]
    return replicated["template"]["spec"]


def container_of(jobset: dict) -> dict:
    (container,) = job_of(jobset)["template"]["spec"]["containers"]
    return container


# By the schemas


@pytest.fixture(scope="module")
def validate_jobset() -> Callable[[dict], None]:
    jsonschema = pytest.importorskip("jsonschema", reason="comes with kubernetes-validate")
    schema = json.loads((FOLDER / "jobset.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return lambda jobset: jsonschema.validate(jobset, schema)


@pytest.fixture(scope="module")
def validate_kubernetes() -> Callable[..., None]:
    """Validates the job of a set and other objects by the schemas of three versions."""
    validator = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")

    def validate(jobset: dict, *others: dict) -> None:
        kind = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j"}}
        for version in ("1.29", "1.33", validator.latest_version()):
            for one in (kind | {"spec": job_of(jobset)}, *others):
                validator.validate(one, version, strict=True)

    return validate


@pytest.mark.parametrize(("machines", "folder"), CASES)
def test_the_jobset_the_job_in_it_and_the_recipes_are_valid(
    machines, folder, render, validate_jobset, validate_kubernetes
):
    config_map, jobset = render("--namespace team", MACHINES[machines], FOLDERS[folder])
    validate_jobset(jobset)
    validate_kubernetes(jobset, config_map)


def test_the_schemas_reject_what_is_wrong(render, validate_jobset, validate_kubernetes):
    _, jobset = render(NODES, "2")
    spoilt = copy.deepcopy(jobset)
    spoilt["spec"]["failurePolicy"]["maxRestart"] = 3
    with pytest.raises(Exception, match="maxRestart"):
        validate_jobset(spoilt)
    container_of(jobset)["imagee"] = "x"
    with pytest.raises(Exception, match="imagee"):
        validate_kubernetes(jobset)


# By what a run needs


def test_the_exit_codes_say_whether_the_set_starts_again(render: Callable):
    _, jobset = render(NODES, "2")
    job, policy = job_of(jobset), jobset["spec"]["failurePolicy"]
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"]["operator"] == "NotIn"
    assert rule["onExitCodes"]["containerName"] == container_of(jobset)["name"]
    assert tuple(rule["onExitCodes"]["values"]) == START_AGAIN
    assert not set(FOR_PEOPLE) & set(rule["onExitCodes"]["values"])
    # What the rule stops ends the set; any other failure starts all of it again, and never a pod alone.
    assert policy["rules"] == [
        {
            "name": "errorForPeople",
            "action": "FailJobSet",
            "onJobFailureReasons": ["PodFailurePolicy"],
        }
    ]
    assert policy["maxRestarts"] == 50 and policy["restartStrategy"] == "BlockingRecreate"
    assert job["backoffLimit"] == 0
    assert job["template"]["spec"]["restartPolicy"] == "Never"


def test_a_pod_is_not_killed_before_its_run_may_have_saved(render: Callable):
    for grace in (20, 100):
        _, jobset = render(NODES, "2 --grace", str(grace))
        arguments = container_of(jobset)["args"]
        assert arguments[arguments.index("--grace") + 1] == str(grace)
        assert job_of(jobset)["template"]["spec"]["terminationGracePeriodSeconds"] > grace
    # 25 seconds is all that GKE's Spot nodes leave to a pod.
    _, jobset = render(NODES, "2 --spot")
    assert job_of(jobset)["template"]["spec"]["terminationGracePeriodSeconds"] <= 25


def test_gpu_processes_find_each_other_by_the_headless_service(render: Callable):
    _, jobset = render(NODES, "4 --gpus 8")
    job, spec = job_of(jobset), jobset["spec"]
    assert (job["completionMode"], job["completions"], job["parallelism"]) == ("Indexed", 4, 4)
    assert spec["replicatedJobs"][0]["replicas"] == 1
    assert spec["network"]["enableDNSHostnames"] and spec["network"]["publishNotReadyAddresses"]
    env = {entry["name"]: entry for entry in container_of(jobset)["env"]}
    # A pod is called SET-JOB-JOBINDEX-PODINDEX.SUBDOMAIN.
    host, port = env["GRAM_JAX_COORDINATOR"]["value"].split(":")
    assert host == f"judge-1-{spec['replicatedJobs'][0]['name']}-0-0.{spec['network']['subdomain']}"
    assert {"containerPort": int(port)} in container_of(jobset)["ports"]
    assert env["GRAM_JAX_PROCESSES"]["value"] == "4"
    field = env["GRAM_JAX_PROCESS"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert field == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert "JAX_PLATFORMS" not in env
    assert container_of(jobset)["resources"]["limits"] == {"nvidia.com/gpu": "8"}


def test_cpu_processes_ask_for_no_device(render: Callable):
    _, jobset = render(NODES, "2 --cpu 8")
    container = container_of(jobset)
    assert {"name": "JAX_PLATFORMS", "value": "cpu"} in container["env"]
    assert container["resources"] == {"limits": {}, "requests": {"cpu": "8"}}


@pytest.mark.parametrize(
    ("arguments", "accelerator", "hosts", "chips"),
    [
        ("v5e:1x1", "tpu-v5-lite-podslice", 1, "1"),
        ("v5e:4x4", "tpu-v5-lite-podslice", 4, "4"),
        ("v5e:2x4 --chips-per-host 8", "tpu-v5-lite-podslice", 1, "8"),
        ("v6e:16x16", "tpu-v6e-slice", 64, "4"),
        ("v5p:2x2x4", "tpu-v5p-slice", 4, "4"),
        ("tpu7x:2x2x1", "tpu7x", 1, "4"),
    ],
)
def test_a_slice_has_a_pod_for_each_host(
    render: Callable, arguments: str, accelerator: str, hosts: int, chips: str
):
    _, jobset = render("--claim c --slices 3 --set mesh.dcn.data=3 --tpu", arguments)
    job = job_of(jobset)
    selector = job["template"]["spec"]["nodeSelector"]
    assert selector["cloud.google.com/gke-tpu-accelerator"] == accelerator
    assert selector["cloud.google.com/gke-tpu-topology"] == arguments.split()[0].split(":")[1]
    assert (job["completions"], job["parallelism"]) == (hosts, hosts)
    assert container_of(jobset)["resources"]["limits"] == {"google.com/tpu": chips}
    assert jobset["spec"]["replicatedJobs"][0]["replicas"] == 3
    # JAX reads GKE's own variables, which ours would contradict.
    assert not any(e["name"].startswith("GRAM_JAX") for e in container_of(jobset)["env"])
    # One slice, one node pool.
    assert list(jobset["metadata"]["annotations"].values()) == ["cloud.google.com/gke-nodepool"]


def test_the_recipes_arrive_as_they_are_and_are_run_in_order(render: Callable):
    config_map, jobset = render(NODES, "1 --set 'run.output_dir=a b'")
    assert config_map["data"] == {Path(p).name: Path(p).read_text() for p in (WRITE, JUDGE)}
    volumes = {v["name"]: v for v in job_of(jobset)["template"]["spec"]["volumes"]}
    mounts = {m["name"]: m["mountPath"] for m in container_of(jobset)["volumeMounts"]}
    assert volumes["recipes"]["configMap"]["name"] == config_map["metadata"]["name"]
    assert container_of(jobset)["args"] == [
        *(f"{mounts['recipes']}/{Path(p).name}" for p in (WRITE, JUDGE)),
        *("--grace", "20", "--set", "run.output_dir=a b"),
    ]
    assert container_of(jobset)["workingDir"] == mounts["work"]


def test_the_program_of_the_pod_is_in_the_images(render: Callable):
    _, jobset = render(NODES, "1")
    folder, _, name = container_of(jobset)["command"][0].rpartition("/")
    for dockerfile in (LAUNCH / "docker").glob("Dockerfile.*"):
        copies = [
            line.split()[1:] for line in dockerfile.read_text().splitlines() if line[:5] == "COPY "
        ]
        assert any(to.rstrip("/") == folder and f"launch/{name}" in what for *what, to in copies)


def test_the_shared_folder_is_what_was_asked_for(render: Callable):
    def volume(*arguments: str) -> tuple[dict, dict]:
        template = job_of(render("--nodes 1", *arguments)[1])["template"]
        (found,) = [v for v in template["spec"]["volumes"] if v["name"] == "work"]
        return found, template

    assert volume("--claim c")[0]["persistentVolumeClaim"] == {"claimName": "c"}
    assert volume("--nfs h:/p")[0]["nfs"] == {"server": "h", "path": "/p"}
    found, template = volume("--bucket b --service-account s")
    assert found["csi"]["volumeAttributes"]["bucketName"] == "b"
    assert "uid=1000" in found["csi"]["volumeAttributes"]["mountOptions"]
    assert template["metadata"]["annotations"] == {"gke-gcsfuse/volumes": "true"}
    assert template["spec"]["serviceAccountName"] == "s"


def test_nothing_runs_as_root_unless_asked(render: Callable):
    for user, is_root in (("", False), ("--user 0", True)):
        _, jobset = render(NODES, "1", user)
        context = job_of(jobset)["template"]["spec"]["securityContext"]
        assert context["runAsNonRoot"] is not is_root
        assert (context["runAsUser"] == 0) is is_root


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("--nodes 1", "--claim, --nfs and --bucket"),
        ("--nodes 1 --claim c --bucket b", "--claim, --nfs and --bucket"),
        ("--claim c", "--tpu KIND:TOPOLOGY or --nodes N"),
        ("--claim c --tpu v5e:4x4 --nodes 2", "--tpu KIND:TOPOLOGY or"),
        ("--claim c --tpu v5e:4x4 --gpus 2", "--gpus"),
        ("--claim c --tpu v9:4x4", "KIND one of v4, v5e"),
        ("--claim c --tpu v5e", "as v5e:4x4"),
        ("--claim c --tpu v5e:3x3", "9 chips do not divide by 4"),
        ("--claim c --tpu v5e:0x4", "2 sizes, as v5e:4x4"),
        ("--claim c --tpu v5e:2x4x4", "2 sizes, as v5e:4x4"),
        ("--claim c --tpu v5p:4x4", "3 sizes, as v5p:2x2x4"),
        ("--claim c --tpu v5e:4x4 --slices 2", "mesh.dcn.data=2"),
        ("--claim c --tpu v5e:4x4 --slices 2 --set mesh.dcn.data=3", "multiplies to 3"),
        ("--claim c --tpu v5e:4x4 --slices 2 --set mesh.dcn.data=x", "cannot be read"),
        ("--nfs server --nodes 1", "SERVER:/PATH"),
        (f"{NODES} 2 --slices 2", "--slices"),
        (f"{NODES} 0", "--nodes 0: expected at least 1"),
        (f"{NODES} 1 --name Judge", "lower-case letters"),
        (f"{NODES} 1 --name {'a' * 45}", "at most 44"),
        (f"{NODES} 1 --recipe absent.toml", "absent.toml"),
        (f"{NODES} 1 --recipe smollm2-135m-finetune", "gram-jax recipe NAME"),
        (f"{NODES} 1 --recipe {WRITE}", "smollm2-135m-pretrain.toml"),
        (f"{NODES} 1 --gpus -1", "--gpus -1: expected at least 0"),
        (f"{NODES} 1 --restarts -1", "--restarts -1: expected at least 0"),
        (f"{NODES} 1 --user -5", "--user -5: expected at least 0"),
        (f"{NODES} 1 --mount work", "expected an absolute path"),
        (f"{NODES} 1 --mount /recipes/", "not /recipes"),
        (f"{NODES} 1 --set foo", "expected KEY=VALUE"),
        (f"{NODES} 1 --chips-per-host 4", "--chips-per-host"),
        (f"{NODES} 1 --gpu-type x", "--gpus N"),
    ],
)
def test_what_cannot_run_is_rejected(module: Any, arguments: str, named: str):
    with pytest.raises(module.LaunchError, match=named):
        module.render(module.arguments([*COMMON, *arguments.split()]))


def test_a_recipe_with_a_name_that_no_configmap_takes_is_rejected(module: Any, tmp_path: Path):
    recipe = tmp_path / "a recipe.toml"
    recipe.write_text("")
    arguments = [*COMMON, *NODES.split(), "1", "--recipe", str(recipe)]
    with pytest.raises(module.LaunchError, match=r"letters, digits and -\._ only"):
        module.render(module.arguments(arguments))


def test_slices_are_counted_in_the_recipe_itself(module: Any, tmp_path: Path):
    recipe = tmp_path / "two.toml"
    recipe.write_text("[mesh]\nfsdp = -1\n[mesh.dcn]\ndata = 2\n")
    assert module.parts_between(recipe, []) == 2
    assert module.parts_between(recipe, ["mesh.dcn.fsdp=2", "run.seed=1"]) == 4


def test_the_command_prints_manifests_and_errors_go_to_standard_error():
    def run(tpu: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(RENDER), *COMMON, "--claim", "c", "--tpu", tpu]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    done = run("v5e:4x4")
    assert done.returncode == 0
    assert [d["kind"] for d in yaml.safe_load_all(done.stdout)] == ["ConfigMap", "JobSet"]
    assert "  smollm2-135m-pretrain.toml: |" in done.stdout  # readable
    done = run("v5e")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("render.py: --tpu v5e")
