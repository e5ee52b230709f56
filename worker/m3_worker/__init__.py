"""The MSA engine and its HTTP API.

Way of one decode step: `engine.Engine.step` → `scheduler.Scheduler.schedule` → `pages.Pages.reserve` →
`runner.Runner.run` → `model.M3Model.forward` → `m3_kernels.ops` → `sampling.sample` → `scheduler.Scheduler.commit` →
`api.generation.Generation.next` → `chat.output.ThinkingSplitter.push` → `api.streams.EventStream`.

Layers: server > loading | api | metrics > serving > engine | chat | tokenizer > scheduler | runner > checkpoint |
sampling | pages | counters > model > cache > request | model_config | config.
"""
