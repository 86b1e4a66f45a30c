"""Compile MaxText's training step for a TPU slice with the settings of our stage 1, and write its HLO.

    python benchmarks/maxtext_program.py MODEL TOPOLOGY HLO.txt [FLAGS] [KEY=VALUE ...]
    python benchmarks/hlo_time.py HLO.txt CHIP

MODEL and TOPOLOGY by MaxText's names: qwen3-0.6b v5e-4, qwen3-1.7b v5e-16, qwen3-8b v6e-16. FLAGS: of libtpu in one
word, such as --xla_jf_spmd_threshold_for_windowed_einsum_mib=1000000. Runs in an environment of its own, without
gram_jax, made with Python 3.12 and MaxText 0.2.5 as written in docs/meshes.md. Needs no TPU.
"""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

# 4 x 2048 tokens a device, full recomputation, splash attention, f32 weights and AdamW, bf16 products, clipping.
SETTINGS = (
    *("compile_topology_num_slices=1", "per_device_batch_size=4", "max_target_length=2048"),
    *("remat_policy=full", "attention=flash", "weight_dtype=float32", "dtype=bfloat16"),
    *("gradient_clipping_threshold=1.0", "run_name=plan", "base_output_directory=unused"),
)


def main() -> None:
    model, topology, hlo, *more = sys.argv[1:]
    given = [f"compile_xla_flags={one}" if one.startswith("--") else one for one in more]
    train_compile = import_module("maxtext.trainers.pre_train.train_compile")

    def write_text(compiled: Any, name: str) -> None:
        Path(name).write_text(compiled.as_text())

    # XLA's own dump of the program has no estimates; the text of the compiled program has.
    vars(train_compile)["save_compiled"] = write_text
    config = Path(import_module("maxtext").__path__[0]) / "configs" / "base.yml"
    of = (f"model_name={model}", f"compile_topology={topology}", f"compiled_trainstep_file={hlo}")
    arguments = [sys.argv[0], str(config), *of, *SETTINGS, *given]
    import_module("absl.app").run(train_compile.main, arguments)


if __name__ == "__main__":
    main()
