"""Which rows of a step go to which program."""

from m3_kernel_cases import SHAPES, step
from m3_kernels.gpu.launch import decode_rows, query_tiles


def test_a_step_that_only_decodes_has_rows_and_no_tiles() -> None:
    batch = step(SHAPES["decodes_of_different_lengths"]).batch
    rows = decode_rows(batch)
    assert rows is not None
    assert rows.rows.tolist() == rows.sequences.tolist() == [0, 1, 2, 3, 4]
    assert query_tiles(batch, 4) is None


def test_a_mixed_step_is_split_by_sequence() -> None:
    batch = step([(3, 3), (1, 40), (5, 26), (1, 1)]).batch
    rows, tiles = decode_rows(batch), query_tiles(batch, 2)
    assert rows is not None
    assert tiles is not None
    assert rows.rows.tolist() == [3, 9]
    assert rows.sequences.tolist() == [1, 3]
    assert tiles.table.tolist() == [[0, 0, 2, 3], [0, 2, 3, 3], [2, 4, 6, 26], [2, 6, 8, 26], [2, 8, 9, 26]]
    assert tiles.longest_context == 26


def test_a_prompt_alone_has_no_decoding_rows() -> None:
    assert decode_rows(step([(5, 5)]).batch) is None


def test_the_views_of_a_step_are_made_once() -> None:
    batch = step([(3, 3), (1, 40)]).batch
    assert decode_rows(batch) is decode_rows(batch)
    assert query_tiles(batch, 2) is query_tiles(batch, 2)
    assert query_tiles(batch, 4) is not query_tiles(batch, 2)
