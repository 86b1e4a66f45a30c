"""Eight fake devices, tiny models, no network: what every test stands on."""

import os

from quick_programs import with_devices

# Before the first import of jax: the fake devices are fixed when the back end starts.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {with_devices(8)}"
# Some tests can use a GPU beside the CPU: "cpu,cuda".
os.environ["JAX_PLATFORMS"] = os.environ.get("GRAM_JAX_TEST_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import gc
from pathlib import Path

import jax
import pytest
from fake_judge import FakeJudge

from gram_jax.model.config import Llama3Scaling, ModelConfig
from gram_jax.model.execution import Execution
from gram_jax.sharding import Placement, make_placement

# Their tests take longest and begin first: at the end of the suite no process is left with a long one.
LONGEST = (
    "test_tutorials",
    "test_jobs",
    "test_jobs_rl",
    "test_hosts",
    "test_rl",
    "test_rl_judged",
    "test_claims",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in LONGEST)


def pytest_collection_finish() -> None:
    """Leave what has been imported out of garbage collections, which take a twentieth of the processor time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000)


FAMILIES = ("llama", "llama3", "qwen2", "qwen3")


def tiny_config(family: str, tied: bool) -> ModelConfig:
    """A two-layer model with the traits of a family; "llama3" is llama with long-context rope scaling."""
    return ModelConfig(
        family="llama" if family == "llama3" else family,
        vocab_size=288,
        embed_size=32,
        layers=2,
        query_heads=4,
        kv_heads=2,
        # Qwen3 states its head size apart from embed_size / query_heads
        head_size=16 if family == "qwen3" else 8,
        mlp_size=48,
        norm_eps=1e-6 if family.startswith("qwen") else 1e-5,
        rope_theta={"llama": 1e5, "llama3": 5e5, "qwen2": 1e6, "qwen3": 1e6}[family],
        rope_scaling=Llama3Scaling(32.0, 1.0, 4.0, 8192) if family == "llama3" else None,
        qkv_bias=family == "qwen2",
        qk_norm=family == "qwen3",
        tied_head=tied,
        context_length=512,
    )


@pytest.fixture
def one_device() -> Placement:
    return make_placement({}, devices=jax.devices()[:1])


@pytest.fixture
def execution(one_device: Placement) -> Execution:
    return Execution("float32", "blocked", "none", one_device)


@pytest.fixture
def cube() -> Placement:
    """2 x 2 x 2 fake devices over data, fsdp and tensor."""
    return make_placement({"data": 2, "fsdp": 2, "tensor": 2}, devices=jax.devices()[:8])


@pytest.fixture
def judge() -> FakeJudge:
    return FakeJudge()


@pytest.fixture
def client(judge: FakeJudge):
    """An ASGI client of a server of the judge."""
    from server import client_for  # skips if the extra serve is not installed

    with client_for(judge, group_wait=0.3) as client:
        yield client


@pytest.fixture(scope="session")
def program_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the modules that ask for it (`compiled_programs` in tiny_runs.py) keep programs, for each other too."""
    return tmp_path_factory.mktemp("xla")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real preference data beside the checkout; tests that read it skip where it is absent."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("GRAM_JAX_SHARED_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder.name} (set GRAM_JAX_SHARED_DATA)")
    return folder
