"""The MSA engine and its HTTP API.

Way of one decode step: `engine.Engine.step` → `scheduling.scheduler.Scheduler.schedule` →
`scheduling.pages.Pages.reserve` → `runner.Runner.run` → `model.m3.M3Model.forward` → `m3_kernels.ops` →
`sampling.sample` → `scheduling.scheduler.Scheduler.commit` → `api.generation.Generation.next` →
`chat.turn.TurnParser.push` → `api.streams.EventStream`.

Layers: server > app > api | loading | metrics | simulate > serving | runner > engine | engine_model | chat | sampling >
media | ranks > scheduling | tokenizer > model | grammar > config.
"""
