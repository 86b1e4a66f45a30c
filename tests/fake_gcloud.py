"""A fake gcloud: it records its arguments and answers from files of the folder FAKE_GCLOUD.

states      a line for each `queued-resources describe`, the last one repeated: ACTIVE, SUSPENDED, ...;
            NOT_FOUND and FAIL (no network) are errors, as of gcloud
workers     a line for each query of the run's status: "running 0; exited 0" for two workers
fail        words of a command that fails
"""

import os
import sys
from pathlib import Path

HERE = Path(os.environ.get("FAKE_GCLOUD", "."))
COMPLAINTS = {
    "NOT_FOUND": "(gcloud.compute.tpus.queued-resources.describe) NOT_FOUND: Resource was not found",
    "FAIL": "could not reach the service",
}


def next_line(name: str) -> str:
    lines = (HERE / name).read_text().splitlines()
    if len(lines) > 1:
        (HERE / name).write_text("\n".join(lines[1:]) + "\n")
    return lines[0]


def answer(words: list[str]) -> int:
    """Record the words and print what gcloud would; the exit status."""
    with (HERE / "gcloud-calls").open("a") as calls:
        calls.write("\x1f".join(words) + "\x1e")
    if (HERE / "fail").exists() and (HERE / "fail").read_text().strip() in " ".join(words):
        return 1
    if "describe" in words:
        state = next_line("states")
        if state in COMPLAINTS:
            print(f"ERROR: {COMPLAINTS[state]}", file=sys.stderr)
            return 1
        print(state)
    elif any("systemctl show" in word for word in words):
        for worker in next_line("workers").split(";"):
            print("run", worker.strip())
    return 0


if __name__ == "__main__":  # pytest imports every file here to look for examples
    sys.exit(answer(sys.argv[1:]))
