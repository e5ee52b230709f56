"""The operator of m3serve: reconciles M3Deployment and M3Router objects, and the `m3` command.

Way of one reconcile: `handlers.on_event` -> `reconcile.cycle` -> `observed.snapshot` -> `plan.steps.next_steps` ->
`cluster.perform` -> `status.build` -> `cluster.write_status`.
"""
