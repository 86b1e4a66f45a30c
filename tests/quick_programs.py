"""XLA flags for programs that run for milliseconds: almost all time of the suite goes into compiling them."""

from importlib.metadata import version

# Without LLVM's optimisations the suite takes a third of the processor time.
FLAGS = "--xla_backend_optimization_level=0"
# The older emitter of fused loops saves a fifth of a training test's processor time. JAX 0.12 no longer has this flag,
# and XLA aborts if it is given an unknown one.
if version("jaxlib").startswith("0.10."):
    FLAGS += " --xla_cpu_use_fusion_emitters=false"


def with_devices(count: int) -> str:
    """The flags, with `count` fake devices."""
    return f"--xla_force_host_platform_device_count={count} {FLAGS}"
