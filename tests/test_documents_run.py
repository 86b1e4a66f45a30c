"""Every command and every Python block of the documents is run, or says what it needs.

A page is run in a folder of its own, block by block, on tiny stand-ins; document_runs.py says what differs from the page.
"""

import os
import shutil
from pathlib import Path

import jax
import pytest
from document_runs import GRANTED, SMALL, Folder, make_stand_ins, small_form
from documents import HOW, NEEDS, PAGES, ROOT, BlockError, blocks_of

RUN = [page for page in PAGES if any(block.is_run for block in blocks_of(page))]


@pytest.fixture(scope="module", autouse=True)
def compiled_programs(tmp_path_factory: pytest.TempPathFactory):
    """What one page compiles the others find, also those that another process of the suite runs."""
    base = tmp_path_factory.getbasetemp()
    cache = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "programs-of-documents"
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = [getattr(jax.config, name) for name in names]
    for name, value in zip(names, (str(cache), 0.2), strict=True):
        jax.config.update(name, value)
    yield
    for name, value in zip(names, before, strict=True):
        jax.config.update(name, value)


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_stand_ins(tmp_path_factory.mktemp("stand-ins"))


@pytest.mark.parametrize("page", RUN)
def test_the_blocks_of_a_page_run_one_after_the_other(page, stand_ins, tmp_path):
    place = tmp_path / "page"
    shutil.copytree(stand_ins, place, symlinks=True)
    for name, source in GRANTED.get(page, {}).items():
        shutil.copytree(stand_ins / source, place / name)
    folder = Folder(place, tools=tmp_path / "tools")
    try:
        for block in blocks_of(page):
            if block.is_run:
                folder.run(block)
    finally:
        folder.close()
