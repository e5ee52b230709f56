"""The MSA engine and its HTTP API.

Way of one decode step: `engine.step` -> `scheduler.schedule` -> `pages.reserve` -> `runner.run` -> `model.forward` ->
`m3_kernels.ops` -> `sampling.sample` -> `scheduler.commit` -> `api.generation` -> `chat.output` -> `api.streams`.
Layers: server > loading | api | metrics > serving > engine | chat | tokenizer > scheduler | runner > checkpoint |
sampling | pages | counters > model > cache > request | model_config | config.
"""
