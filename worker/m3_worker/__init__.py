"""The MSA engine and its HTTP API.

Way of one decode step: `engine.Engine.step` → `scheduler.Scheduler.schedule` → `pages.Pages.reserve` →
`runner.Runner.run` → `model.M3Model.forward` → `m3_kernels.ops` → `sampling.sample` → `scheduler.Scheduler.commit` →
`api.generation.Generation.next` → `chat.turn.TurnParser.push` → `api.streams.EventStream`.

Layers: server > loading | api | metrics > serving > engine | chat > scheduler | runner > sampling | pages | checkpoint
> model > cache | request | grammar > model_config | prefix | config.
"""
