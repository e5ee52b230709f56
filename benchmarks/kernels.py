"""What the attention kernels cost on this GPU, and that they are right on it; without a GPU, that they are right.

    python benchmarks/kernels.py [--cpu] [--output benchmarks/kernels/RESULTS-<chip>.md]

One call, under nine minutes on an H100 or H200. On a GPU: M3's shapes in bf16 and with FP8 caches, against float64 on
fresh inputs, then times beside floors of the measured copy and product rates, beside torch's dense attention and a
plain kernel of one query a program. With --cpu: the same rows at toy sizes in Triton's interpreter, no times. Both
count the loop orders of sparse prefill at M3's size. Parts: `kernels/` beside this file.
"""

import argparse
import os
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "kernels"))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cpu", action="store_true", help="toy sizes in Triton's interpreter, no times")
    parser.add_argument("--output", type=Path, help="where the Markdown goes; the JSON lies beside it")
    arguments = parser.parse_args()
    if arguments.cpu:
        # Before NumPy and Triton are imported, which read these once. More threads wait for each other.
        os.environ.update(TRITON_INTERPRET="1", OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1")
    run(is_cpu=arguments.cpu, output=arguments.output)


def run(*, is_cpu: bool, output: Path | None) -> None:
    import report
    import rows
    import torch
    from gpu_timer import measure_chip
    from shapes import M3, RANDOM, TOY, Chunk

    from m3_kernels.gpu import attention_tiles

    if not is_cpu and not torch.cuda.is_available():
        sys.exit("no GPU: pass --cpu to run the same rows at toy sizes, without times")
    began = time.monotonic()
    if is_cpu:
        scale = rows.Scale(TOY, torch.float16, [Chunk(24, 90), Chunk(40, 40)], [Chunk(20, 75)], [(1, 100), (3, 49)])
        rows.check_counts(TOY, Chunk(60, 150), RANDOM)
        bench, chip = rows.Bench(scale, "cpu", None), None
    else:
        chip = measure_chip()
        chunks = [Chunk(queries, context) for context in (8192, 131072, 524288) for queries in (8192, 512)]
        decodes = [(1, 65536), (4, 131072), (16, 131072), (64, 65536)]
        dense = [Chunk(8192, 8192), Chunk(8192, 131072)]
        scale = rows.Scale(M3, torch.bfloat16, [*chunks, Chunk(512, 1048576)], dense, decodes)
        bench = rows.Bench(scale, "cuda", chip)
    found = []
    for part in (rows.choices, rows.sparse_prefills, rows.sparse_decodes, rows.dense):
        for row in part(bench):
            print(
                f"{time.monotonic() - began:6.1f} s  {row.op}, {row.variant}, {row.shape}: error {row.error}",
                flush=True,
            )
            found.append(row)
    wrong = [row for row in found if row.error is not None and row.error > 2e-2]
    counts = report.count(8192, (8192, 131072, 524288), attention_tiles.KV_OUTER_RUN, attention_tiles.KV_OUTER_ROWS)
    name = "cpu" if chip is None else chip.name.replace(" ", "-")
    path = output or HERE / "kernels" / f"RESULTS-{name}.md"
    report.write(path, chip, found, counts, time.monotonic() - began)
    print(f"{len(found)} rows, {len(wrong)} wrong; written to {path}")
    if wrong:
        sys.exit(f"wrong: {wrong}")


if __name__ == "__main__":
    main()
