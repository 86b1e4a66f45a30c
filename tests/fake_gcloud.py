"""A gcloud that makes no calls: it notes its arguments and answers from files of the folder FAKE_GCLOUD.

states      a line for each `queued-resources describe`, the last one for ever: ACTIVE, SUSPENDED, ...;
            NOT_FOUND is answered as gcloud does, FAIL as when the network is down
workers     a line for each question how the run is doing: "running 0; exited 0" for two workers
fail        words of a command that fails
"""

import os
import sys
from pathlib import Path

HERE = Path(os.environ.get("FAKE_GCLOUD", "."))


def next_line(name: str) -> str:
    lines = (HERE / name).read_text().splitlines()
    if len(lines) > 1:
        (HERE / name).write_text("\n".join(lines[1:]) + "\n")
    return lines[0]


words = sys.argv[1:]
with (HERE / "gcloud-calls").open("a") as calls:
    calls.write("\x1f".join(words) + "\x1e")
if (HERE / "fail").exists() and (HERE / "fail").read_text().strip() in " ".join(words):
    sys.exit(1)
if "describe" in words:
    state = next_line("states")
    if state == "NOT_FOUND":
        sys.exit(
            "ERROR: (gcloud.compute.tpus.queued-resources.describe) NOT_FOUND: Resource was not found"
        )
    if state == "FAIL":
        sys.exit("ERROR: could not reach the service")
    print(state)
elif any("systemctl show" in word for word in words):
    for worker in next_line("workers").split(";"):
        print("run", worker.strip())
