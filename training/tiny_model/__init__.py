"""Trains the tiny M3 that ships with the worker: real architecture, own tokenizer, answers about m3serve.

The way: `corpus.load` → `vocabulary.train` → `shape.config_json` → `network.build` → `rows.Rows` → `train.train` →
`checkpoint.write`. `python -m tiny_model` (from `training/`, as `make tiny-model` does) runs all of it from one seed.
"""
