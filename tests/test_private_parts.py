"""Canary: private parts of other packages that we build on. A release that changes them fails here first, by name."""

import inspect

import orbax.checkpoint as ocp
import pytest


def test_orbax_finalizes_a_temporary_folder_as_we_override_it():
    """checkpoint/orbax.py writes the manifest between Orbax's last write and the rename."""
    temporary = ocp.path.atomicity.AtomicRenameTemporaryPath
    assert inspect.iscoroutinefunction(temporary.finalize)
    source = inspect.getsource(temporary)
    for attribute in ("_checkpoint_metadata_store", "_final_path", "_tmp_path"):
        assert attribute in source, attribute


def test_gguf_reads_through_the_method_that_we_bound():
    """interop/gguf.py refuses reads past the end of a file in `_get`."""
    reader = pytest.importorskip("gguf").GGUFReader
    assert list(inspect.signature(reader._get).parameters)[:4] == [
        "self",
        "offset",
        "dtype",
        "count",
    ]
    assert "np.memmap" in inspect.getsource(reader.__init__)


def test_tensorboard_events_are_written_without_a_thread(tmp_path):
    """run/metrics.py writes events itself: SummaryWriter's thread ends silently on a full disk."""
    writer = pytest.importorskip("tensorboardX.event_file_writer").EventsWriter
    from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]

    file = writer(str(tmp_path / "events"))
    file.write_event(Event(step=1, summary={"value": [{"tag": "loss", "simple_value": 0.5}]}))
    file.close()
    (written,) = tmp_path.iterdir()
    assert written.stat().st_size > 0
