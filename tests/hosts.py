"""Two hosts on one machine, joined by a network that can be cut, delayed and made lossy. Needs root and /dev/net/tun.

Each host is a network namespace with an address, a host name and a view of the file system of its own: `work` in its
view is the folder that both share, `local` is its own. The link is a pair of TAP devices between which a thread of this
process passes frames, because netem is not in every kernel.
"""

import fcntl
import heapq
import itertools
import json
import os
import random
import re
import secrets
import select
import shutil
import struct
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from jobs import COMMAND, Job, environment

TUNSETIFF, TAP_WITHOUT_HEADER = 0x400454CA, 0x0002 | 0x1000
FRAME = 1 << 16


def missing() -> str | None:
    """Why there can be no hosts here, or None."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if absent := [name for name in ("ip", "unshare", "mount") if shutil.which(name) is None]:
        return f"{', '.join(absent)} not found"
    if not Path("/dev/net/tun").exists():
        return "/dev/net/tun does not exist"
    name = f"probe{secrets.token_hex(3)}"
    done = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if done.returncode:
        return f"network namespaces are not permitted: {done.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], check=True)
    return None


class Link:
    """Passes frames between two TAP devices. delay: seconds in each direction; loss: share of frames dropped."""

    def __init__(self, devices: tuple[int, int], loss: float, seed: int = 0):
        self.delay, self.loss = 0.0, loss
        self.passed = self.dropped = 0
        self._devices, self._draw = devices, random.Random(seed)
        self._stopped, self._wake = os.pipe()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def cut(self) -> None:
        """Drop every frame."""
        self.loss = 1.0

    def restore(self) -> None:
        """Neither delay nor loss."""
        self.delay = self.loss = 0.0

    def close(self) -> None:
        os.write(self._wake, b"x")
        self._thread.join()
        for device in (*self._devices, self._stopped, self._wake):
            os.close(device)

    def _work(self) -> None:
        one, other = self._devices
        beyond = {one: other, other: one}
        under_way: list[tuple[float, int, int, bytes]] = []
        numbers = itertools.count()
        while True:
            wait = max(0.0, under_way[0][0] - time.monotonic()) if under_way else None
            ready, _, _ = select.select([*beyond, self._stopped], [], [], wait)
            if self._stopped in ready:
                return
            for device in ready:
                frame = os.read(device, FRAME)
                if self._draw.random() < self.loss:
                    self.dropped += 1
                else:
                    arrival = time.monotonic() + self.delay
                    heapq.heappush(under_way, (arrival, next(numbers), beyond[device], frame))
            while under_way and under_way[0][0] <= time.monotonic():
                _, _, device, frame = heapq.heappop(under_way)
                os.write(device, frame)
                self.passed += 1


@dataclass(frozen=True)
class Host:
    name: str
    address: str
    namespace: str
    view: str  # shell commands that make its view of the file system

    def start(
        self, words: list[str], environment: Mapping[str, str], folder: Path, output: Path
    ) -> subprocess.Popen[bytes]:
        """Start a program in `folder` as this host sees it."""
        shell = f'{self.view} && cd {folder} && exec "$@"'
        inside = ["unshare", "--mount", "--uts", "sh", "-c", shell, "sh", *words]
        with output.open("wb") as file:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.namespace, *inside],
                env=dict(environment),
                stdout=file,
                stderr=subprocess.STDOUT,
            )


@dataclass(frozen=True)
class Hosts:
    """work: the shared folder as the hosts see it; outside: the same folder as this process sees it."""

    hosts: tuple[Host, Host]
    link: Link
    work: Path
    outside: Path


@contextmanager
def two_hosts(folder: Path, *, shared: bool = True, joined: bool = True) -> Iterator[Hosts]:
    """Two hosts and their link; both are removed with the block.

    shared: whether `work` is the same folder. joined: whether the link passes frames from the start; a kernel sends
    some as soon as a device is up.
    """
    mark = secrets.token_hex(3)
    folder = folder.resolve()
    outside, work, local = (folder / name for name in ("outside", "work", "local"))
    for path in (outside, work, local):
        path.mkdir(parents=True, exist_ok=True)
    names, addresses = ("one", "two"), ("10.77.0.1", "10.77.0.2")
    lines = ["127.0.0.1 localhost", *map("{1} {0}".format, names, addresses)]
    (folder / "hosts").write_text("\n".join(lines) + "\n")

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True)

    with ExitStack() as held:
        devices, hosts = [], []
        for number, (name, address) in enumerate(zip(names, addresses, strict=True)):
            device = f"gj{number}{mark}"
            descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
            request = struct.pack("16sH", device.encode(), TAP_WITHOUT_HEADER)
            fcntl.ioctl(descriptor, TUNSETIFF, request)
            devices.append(descriptor)
            ip("netns", "add", device)
            held.callback(ip, "netns", "del", device)
            ip("link", "set", device, "netns", device)
            ip("-n", device, "link", "set", "lo", "up")
            ip("-n", device, "link", "set", device, "mtu", "9000", "up")
            ip("-n", device, "addr", "add", f"{address}/24", "dev", device)
            own = f"mount --bind {outside} {work}" if shared or not number else "true"
            view = (
                f"hostname {name} && mount --bind {folder}/hosts /etc/hosts && {own} && "
                f"mount -t tmpfs tmpfs {local}"
            )
            hosts.append(Host(name, address, device, view))
        link = Link((devices[0], devices[1]), loss=0.0 if joined else 1.0)
        held.callback(link.close)
        yield Hosts((hosts[0], hosts[1]), link, work, outside)


def start_job_on(
    hosts: Hosts, recipe: Path, *arguments: str, command: str = "train", port: int = 12380
) -> Job:
    """A job of a process on each host, with one device each; its outputs are files of this process's view."""
    outputs, processes = [], []
    coordinator = f"{hosts.hosts[0].name}:{port}"
    for index, host in enumerate(hosts.hosts):
        output = hosts.outside.parent / f"output-{index}-{time.monotonic_ns()}.txt"
        place = ["--coordinator", coordinator, "--processes", "2", "--process", str(index)]
        words = [*COMMAND, command, str(recipe), *place, *arguments]
        outputs.append(output)
        processes.append(host.start(words, environment(1), hosts.work, output))
    return Job(processes, outputs)


@dataclass(frozen=True)
class Disturbed:
    """What a run on two hosts did. seconds: from the cut to the end of the last process; resumed: from which step."""

    delayed: int  # steps while every frame was delayed
    lossy: int  # steps while frames were lost
    statuses: list[int]
    seconds: float
    resumed: int


def disturbed_run(
    hosts: Hosts, recipe: Path, run: str, *, command: str, lost_after: int, steps: int = 2
) -> Disturbed:
    """Run a recipe on a network that is delayed by 200 ms, then loses 5 % of its frames, then is cut; run it again.

    run: name of its folder in `work`. steps: number of steps that it takes in each of the first two states. The second
    run is to finish. Raises AssertionError if the job ends or stands still before the cut, or the second does not
    finish.
    """
    link, arguments = hosts.link, ("--lost-after", str(lost_after))
    metrics = hosts.outside / run / "metrics.jsonl"

    def step() -> int:
        rows = metrics.read_text().splitlines() if metrics.exists() else []
        return max((json.loads(row)["step"] for row in rows if row.endswith("}")), default=0)

    def progress(number: int, seconds: float = 120) -> int:
        start, deadline = step(), time.monotonic() + seconds
        while (now := step()) < start + number:
            if time.monotonic() > deadline or any(p.poll() is not None for p in job.processes):
                job.kill()
                raise AssertionError(
                    f"step {now}, expected {start + number}\n" + "\n".join(job.texts())
                )
            time.sleep(0.05)
        return now - start

    link.delay = 0.01  # steps on a network without delay would be over before anything happens
    job = start_job_on(hosts, recipe, *arguments, command=command)
    try:
        progress(2)
        link.delay = 0.2
        delayed = progress(steps)
        link.delay, link.loss = 0.01, 0.05
        lossy = progress(steps)
        link.cut()
        start = time.monotonic()
        statuses = job.wait(lost_after + 30)
        seconds = time.monotonic() - start
    finally:
        job.kill()
        link.restore()
    again = start_job_on(hosts, recipe, *arguments, command=command)
    ends = again.wait(180)
    assert ends == [0, 0], "\n".join(again.texts())
    found = re.search(r"resuming from step (\d+)", again.texts()[0])
    return Disturbed(delayed, lossy, statuses, seconds, int(found[1]) if found else 0)
