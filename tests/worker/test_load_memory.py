"""Loading takes the memory of the weights and little more: what is mapped from files is let go on the way.

Measured by the kernel in a process of its own, on a checkpoint of about 100 MB.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from m3_worker.config import TinySettings
from m3_worker.tiny import write_checkpoint

LOAD = """
import json, sys
from pathlib import Path
import torch
from m3_worker.model.checkpoint import load_model
from m3_worker.model.config import ModelConfig

def memory(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))

torch.set_num_threads(1)
torch.zeros(1000, 1000) @ torch.zeros(1000, 1000)
directory = Path(sys.argv[1])
told = []
before = memory("VmRSS")
tell = lambda read_bytes, needed_bytes: told.append((read_bytes, needed_bytes))
model = load_model(directory, ModelConfig.load(directory), torch.float32, "cpu", tell)
print(json.dumps({"peak": memory("VmHWM") - before, "read": told[-1][0], "needed": told[-1][1]}))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_loading_takes_a_tenth_more_than_the_weights_at_most(tmp_path: Path) -> None:
    weight_bytes = write_checkpoint(
        TinySettings(
            directory=tmp_path,
            layers=3,
            hidden=512,
            heads=8,
            head_dim=32,
            experts=16,
            intermediate=512,
            vision=False,
        )
    )
    assert weight_bytes > 100e6
    done = subprocess.run([sys.executable, "-c", LOAD, str(tmp_path)], capture_output=True, check=True, text=True)
    measured = json.loads(done.stdout)
    assert measured["read"] == measured["needed"] == weight_bytes
    assert weight_bytes < measured["peak"] < 1.1 * weight_bytes, f"{measured['peak'] / weight_bytes:.3f} of the weights"
