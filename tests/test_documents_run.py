"""Every command and every Python block of the documents is run, or says what it needs.

A page is run in a folder of its own, block by block, on tiny stand-ins; document_runs.py says what differs from the page.
"""

import shutil
from pathlib import Path

import jax
import pytest
from document_runs import GRANTED, SMALL, Folder, make_stand_ins, small_form
from documents import HOW, NEEDS, PAGES, ROOT, BlockError, blocks_of
from tiny_runs import compiled_programs  # noqa: F401

RUN = [page for page in PAGES if any(block.is_run for block in blocks_of(page))]


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
