"""The TPU compiler's estimate of the time of any program, from the text of its compiled HLO.

    python benchmarks/hlo_time.py HLO.txt CHIP [--operations 20]

For programs of other frameworks: XLA writes the text with XLA_FLAGS="--xla_dump_to=FOLDER --xla_dump_hlo_as_text", as
FOLDER/*.after_optimizations.txt. CHIP: v5e, v5p or v6e. The sum has no collectives and no Pallas kernels
(docs/planning.md); collectives are counted apart.
"""

import argparse
from pathlib import Path

from gram_jax.plan.chips import CHIPS
from gram_jax.plan.collectives import collectives
from gram_jax.plan.cycles import operations, pallas_calls
from gram_jax.plan.hlo import parse_hlo

CLOCKS = {name: chip.clock for name, chip in CHIPS.items() if chip.clock}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("hlo", type=Path)
    parser.add_argument("chip", choices=sorted(CLOCKS))
    parser.add_argument("--operations", type=int, default=0)
    options = parser.parse_args()
    module, milliseconds = parse_hlo(options.hlo.read_text()), 1e3 / CLOCKS[options.chip]
    found, traffic = operations(module), collectives(module)
    print(f"{sum(one.cycles for one in found) * milliseconds:,.1f} ms by the compiler's estimate")
    print(f"{pallas_calls(module)} Pallas kernels in the text, without an estimate")
    for kind, moved in sorted(traffic.items()):
        print(f"{kind}: {moved.count} calls, {moved.links / 2**30:.2f} GiB to each device")
    for one in found[: options.operations]:
        taken = one.cycles * milliseconds
        print(f"{taken:9.2f} ms  {one.runs:5} runs  {one.type[:40]:40}  {one.place}")


if __name__ == "__main__":
    main()
