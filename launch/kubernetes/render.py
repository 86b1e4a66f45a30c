#!/usr/bin/env python3
"""A training run on Kubernetes, as manifests on standard output: one JobSet and a ConfigMap with its recipes.

    launch/kubernetes/render.py --name judge --image IMAGE --recipe WRITE.toml --recipe JUDGE.toml \\
        --tpu v5e:4x4 --slices 2 --set mesh.dcn.data=2 --claim VOLUME | kubectl apply -f -

Nothing is sent anywhere: what is printed is what would run.
"""

import argparse
import math
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import yaml

# The name in `gram-jax plan --topology` -> GKE's value of the node label cloud.google.com/gke-tpu-accelerator.
TPU_ACCELERATORS = {
    "v4": "tpu-v4-podslice",
    "v5e": "tpu-v5-lite-podslice",
    "v5p": "tpu-v5p-slice",
    "v6e": "tpu-v6e-slice",
    "tpu7x": "tpu7x",
}
FLAT = ("v5e", "v6e")  # their topologies have two sizes, those of the others three

# Exit statuses after which a run is started again: 75 and 76 ask for it, the others are deaths by a signal (ABRT, BUS,
# KILL, SEGV, TERM). Every launcher has this list.
START_AGAIN = [75, 76, 134, 135, 137, 139, 143]

COORDINATOR_PORT = 8476
RECIPES = "/recipes"  # where the ConfigMap is mounted
RUNNER = "/opt/gram-jax/launch/one_machine.sh"  # where the Dockerfiles put it
SECONDS_TO_END = 5  # between the end of --grace and SIGKILL

Manifest = dict[str, Any]


class LaunchError(Exception):
    """The options do not make a job."""


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="render.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--name", required=True, help="of the JobSet: lower-case letters, digits, hyphens")
    add("--image", required=True, help="built from launch/docker")
    add("--recipe", required=True, action="append", type=Path, help="again for a second stage")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="as in gram-jax train")
    add("--namespace", help="default: that of kubectl")

    add = parser.add_argument_group(
        "machines: --tpu, or --nodes with or without --gpus"
    ).add_argument
    add("--tpu", metavar="KIND:TOPOLOGY", help="one slice, as v5e:4x4, v5p:2x2x4, v6e:8x8")
    add("--slices", type=int, default=1, help="of that TPU (default 1)")
    add("--chips-per-host", type=int, help="default 4, or all chips of a slice that has fewer")
    add("--nodes", type=int, help="one process each")
    add("--gpus", type=int, default=0, help="on each node; 0 trains on CPUs")
    add("--gpu-type", help="value of cloud.google.com/gke-accelerator, as nvidia-h100-80gb")
    add("--spot", action="store_true", help="GKE's Spot nodes")
    add("--cpu", help="CPU request of each process, as 8")
    add("--memory", help="memory request of each process, as 64Gi")

    add = parser.add_argument_group(
        "the shared folder (one of these), which recipes name"
    ).add_argument
    add("--claim", help="a PersistentVolumeClaim in mode ReadWriteMany (Filestore, NFS, Lustre)")
    add("--nfs", metavar="SERVER:/PATH", help="an NFS export")
    add("--bucket", help="Cloud Storage through GCS FUSE: with hierarchical namespace only")
    add("--mount", default="/work", help="its path, where the run starts (default /work)")

    add = parser.add_argument_group("lifetime and rights").add_argument
    add("--grace", type=int, default=20, help="seconds to save after SIGTERM (default 20)")
    add("--restarts", type=int, default=50, help="of the whole JobSet (default 50)")
    add("--user", type=int, default=1000, help="numeric id of the processes (default 1000)")
    add("--service-account", help="Kubernetes service account (a bucket needs one)")
    return parser.parse_args(argv)


def check(options: argparse.Namespace) -> None:
    """Raises LaunchError for what Kubernetes would reject later, or would accept and run wrongly."""
    # A pod's host name is NAME-train-SLICE-INDEX, and a host name has at most 63 characters.
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,42}[a-z0-9])?", options.name):
        raise LaunchError(
            f"--name {options.name}: expected at most 44 lower-case letters, digits and hyphens,"
            " beginning with a letter"
        )
    if (options.tpu is None) == (options.nodes is None):
        raise LaunchError("expected either --tpu KIND:TOPOLOGY or --nodes N (with --gpus N)")
    if options.tpu is not None and (options.gpus or options.gpu_type):
        raise LaunchError("--tpu and --gpus do not go together")
    if options.tpu is None and options.slices != 1:
        raise LaunchError("--slices is for TPUs: give --nodes N for N GPU or CPU nodes")
    if options.tpu is None and options.chips_per_host is not None:
        raise LaunchError("--chips-per-host is for TPUs: give --gpus N for N GPUs on each node")
    if options.gpu_type and not options.gpus:
        raise LaunchError(f"--gpu-type {options.gpu_type}: expected --gpus N with it")
    least = {"slices": 1, "nodes": 1, "chips_per_host": 1, "grace": 1}
    for name, lowest in (least | {"gpus": 0, "restarts": 0, "user": 0}).items():
        value = getattr(options, name)
        if value is not None and value < lowest:
            raise LaunchError(f"--{name.replace('_', '-')} {value}: expected at least {lowest}")
    if sum(x is not None for x in (options.claim, options.nfs, options.bucket)) != 1:
        raise LaunchError("expected one of --claim, --nfs and --bucket: the runs share a folder")
    if options.nfs is not None and not re.fullmatch(r"[^:/]+:/.*", options.nfs):
        raise LaunchError(f"--nfs {options.nfs}: expected SERVER:/PATH")
    if not re.fullmatch(r"/[^:]+", options.mount) or Path(options.mount) == Path(RECIPES):
        raise LaunchError(
            f"--mount {options.mount}: expected an absolute path without a colon, not {RECIPES}, as /work"
        )
    for setting in options.set:
        if not re.fullmatch(r"[\w.]+=.*", setting, re.DOTALL):
            raise LaunchError(f"--set {setting}: expected KEY=VALUE, as run.seed=1")
    names = [path.name for path in options.recipe]
    if len(set(names)) != len(names):
        raise LaunchError(f"two recipes are called the same: {', '.join(sorted(names))}")
    for path in options.recipe:
        if not path.is_file():
            raise LaunchError(
                f"--recipe {path}: there is no such file; gram-jax recipe NAME > NAME.toml writes one that ships with"
                " gram_jax"
            )
        if not re.fullmatch(r"[-._a-zA-Z0-9]{1,253}", path.name):
            raise LaunchError(
                f"--recipe {path}: a ConfigMap takes names of letters, digits and -._ only"
            )
        if options.slices > 1 and (between := parts_between(path, options.set)) != options.slices:
            raise LaunchError(
                f"--slices {options.slices}, and [mesh.dcn] of {path} multiplies to {between}: expected the number of"
                f" slices, as --set mesh.dcn.data={options.slices}"
            )


def parts_between(recipe: Path, settings: list[str]) -> int:
    """The number of slices that a recipe with these settings is made for."""
    try:
        sizes = tomllib.loads(recipe.read_text()).get("mesh", {}).get("dcn", {})
        for setting in settings:
            key, _, value = setting.partition("=")
            if key.startswith("mesh.dcn."):
                sizes[key.removeprefix("mesh.dcn.")] = int(value)
        return math.prod(sizes.values())
    except (ValueError, TypeError, AttributeError) as error:
        raise LaunchError(f"--recipe {recipe}: its [mesh.dcn] cannot be read: {error}") from None


def slice_shape(options: argparse.Namespace) -> tuple[str, str, int, int]:
    """A TPU slice as (accelerator label, topology, hosts, chips of a host)."""
    kind, _, topology = options.tpu.partition(":")
    if kind not in TPU_ACCELERATORS:
        raise LaunchError(
            f"--tpu {options.tpu}: expected KIND:TOPOLOGY with KIND one of"
            f" {', '.join(TPU_ACCELERATORS)}, as v5e:4x4"
        )
    sizes, example = (2, "4x4") if kind in FLAT else (3, "2x2x4")
    if not re.fullmatch(r"[1-9]\d*" + r"x[1-9]\d*" * (sizes - 1), topology):
        raise LaunchError(f"--tpu {options.tpu}: expected {sizes} sizes, as {kind}:{example}")
    chips = math.prod(int(side) for side in topology.split("x"))
    per_host = options.chips_per_host or min(chips, 4)
    if chips % per_host:
        raise LaunchError(
            f"--tpu {options.tpu}: {chips} chips do not divide by {per_host} on each host"
        )
    return TPU_ACCELERATORS[kind], topology, chips // per_host, per_host


def volume(options: argparse.Namespace) -> Manifest:
    if options.claim is not None:
        return {"persistentVolumeClaim": {"claimName": options.claim}}
    if options.nfs is not None:
        server, _, path = options.nfs.partition(":")
        return {"nfs": {"server": server, "path": path}}
    flags = f"implicit-dirs,uid={options.user},gid={options.user}"
    attributes = {"bucketName": options.bucket, "mountOptions": flags}
    return {"csi": {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": attributes}}


def machines(options: argparse.Namespace) -> tuple[dict[str, str], dict[str, str], int]:
    """(node selector, device limits of a process, processes of a slice)."""
    selector, limits = {}, {}
    if options.tpu is not None:
        accelerator, topology, processes, chips = slice_shape(options)
        selector["cloud.google.com/gke-tpu-accelerator"] = accelerator
        selector["cloud.google.com/gke-tpu-topology"] = topology
        limits["google.com/tpu"] = str(chips)
    else:
        processes = options.nodes
        if options.gpus:
            limits["nvidia.com/gpu"] = str(options.gpus)
        if options.gpu_type:
            selector["cloud.google.com/gke-accelerator"] = options.gpu_type
    if options.spot:
        selector["cloud.google.com/gke-spot"] = "true"
    return selector, limits, processes


def environment(options: argparse.Namespace, processes: int) -> list[Manifest]:
    """The variables by which processes find each other; on TPUs GKE sets them."""
    if options.tpu is not None:
        return []
    index = {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}
    host = f"{options.name}-train-0-0.{options.name}"
    found = [
        {"name": "GRAM_JAX_COORDINATOR", "value": f"{host}:{COORDINATOR_PORT}"},
        {"name": "GRAM_JAX_PROCESSES", "value": str(processes)},
        {"name": "GRAM_JAX_PROCESS", "valueFrom": {"fieldRef": index}},
    ]
    return found if options.gpus else [*found, {"name": "JAX_PLATFORMS", "value": "cpu"}]


def container(options: argparse.Namespace) -> Manifest:
    _, limits, processes = machines(options)
    recipes = [f"{RECIPES}/{path.name}" for path in options.recipe]
    settings = [word for setting in options.set for word in ("--set", setting)]
    requests = {"cpu": options.cpu, "memory": options.memory}
    ports = [8471, 8431] if options.tpu is not None else [COORDINATOR_PORT]  # libtpu's, its metrics
    return {
        "name": "train",
        "image": options.image,
        "command": [RUNNER],
        "args": [*recipes, "--grace", str(options.grace), *settings],
        "workingDir": options.mount,
        "env": environment(options, processes),
        "ports": [{"containerPort": port} for port in ports],
        "resources": {
            "limits": limits,
            "requests": limits | {key: value for key, value in requests.items() if value},
        },
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [
            {"name": "work", "mountPath": options.mount},
            {"name": "recipes", "mountPath": RECIPES, "readOnly": True},
            {"name": "shm", "mountPath": "/dev/shm"},
        ],
    }


def pod(options: argparse.Namespace) -> Manifest:
    selector, _, _ = machines(options)
    # /dev/shm of a container has 64 MiB, too little for NCCL and for loader processes.
    volumes = [
        {"name": "work", **volume(options)},
        {"name": "recipes", "configMap": {"name": f"{options.name}-recipes"}},
        {"name": "shm", "emptyDir": {"medium": "Memory"}},
    ]
    spec = {
        "restartPolicy": "Never",  # a process alone cannot rejoin: the whole JobSet starts again
        "terminationGracePeriodSeconds": options.grace + SECONDS_TO_END,
        "securityContext": {
            "runAsNonRoot": options.user != 0,
            "runAsUser": options.user,
            "fsGroup": options.user,
            "fsGroupChangePolicy": "OnRootMismatch",
        },
        "containers": [container(options)],
        "volumes": volumes,
    }
    if selector:
        spec["nodeSelector"] = selector
    if options.spot:
        key = {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true"}
        spec["tolerations"] = [{**key, "effect": "NoSchedule"}]
    if options.service_account:
        spec["serviceAccountName"] = options.service_account
    template: Manifest = {"spec": spec}
    if options.bucket is not None:
        template["metadata"] = {"annotations": {"gke-gcsfuse/volumes": "true"}}
    return template


def job(options: argparse.Namespace) -> Manifest:
    """The template of a slice: one pod for each process; the first that fails ends all."""
    _, _, processes = machines(options)
    stop = {"containerName": "train", "operator": "NotIn", "values": START_AGAIN}
    return {
        "spec": {
            "completionMode": "Indexed",
            "completions": processes,
            "parallelism": processes,
            "backoffLimit": 0,
            # Named, so that the JobSet can distinguish user errors (PodFailurePolicy) from "start again"
            # (BackoffLimitExceeded, which a lost node gives as well).
            "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": stop}]},
            "template": pod(options),
        }
    }


def jobset(options: argparse.Namespace) -> Manifest:
    metadata: Manifest = {"name": options.name, "labels": {"app.kubernetes.io/name": "gram-jax"}}
    if options.namespace:
        metadata["namespace"] = options.namespace
    if options.tpu is not None:
        # A slice is a node pool: its pods must not be spread over two.
        pool = "cloud.google.com/gke-nodepool"
        metadata["annotations"] = {"alpha.jobset.sigs.k8s.io/exclusive-topology": pool}
    people = {
        "name": "errorForPeople",
        "action": "FailJobSet",
        "onJobFailureReasons": ["PodFailurePolicy"],
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            # The headless service: pod 0 must be found before it is ready.
            "network": {
                "enableDNSHostnames": True,
                "subdomain": options.name,
                "publishNotReadyAddresses": True,
            },
            "failurePolicy": {
                "maxRestarts": options.restarts,
                # All pods are gone before new ones start: two never write to one run.
                "restartStrategy": "BlockingRecreate",
                "rules": [people],
            },
            "replicatedJobs": [
                {"name": "train", "replicas": options.slices, "template": job(options)}
            ],
        },
    }


def recipes(options: argparse.Namespace) -> Manifest:
    metadata = {"name": f"{options.name}-recipes"}
    if options.namespace:
        metadata["namespace"] = options.namespace
    texts = {path.name: path.read_text() for path in options.recipe}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": texts}


class Plain(yaml.SafeDumper):
    """Writes texts of several lines as blocks, and no aliases."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


Plain.add_representer(str, _text)


def render(options: argparse.Namespace) -> str:
    """The manifests as YAML, in the order in which they are created."""
    check(options)
    documents = [recipes(options), jobset(options)]
    return yaml.dump_all(documents, Dumper=Plain, sort_keys=False, width=120)


def main() -> None:
    try:
        sys.stdout.write(render(arguments()))
    except LaunchError as error:
        print(f"render.py: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
