"""The notebook's cells run, in their order, as a reader runs them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parent.parent / "examples" / "first_walk.ipynb"


@pytest.mark.slow
def test_every_cell_runs_and_the_world_knows_its_actions(tmp_path):
    cells = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    bits = [float(line.split()[0]) for line in result.stdout.splitlines() if "bits per code" in line]
    assert len(bits) == 2 and bits[0] < bits[1], "the true actions surprise the world less than wrong ones"
    assert result.stdout.count("mean return") == 2


def test_cells_hold_no_outputs():
    cells = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
    assert not any(cell.get("outputs") for cell in cells)
