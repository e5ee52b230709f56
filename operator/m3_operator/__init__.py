"""The operator of m3serve: reconciles M3Deployment and M3Router objects. The `m3` command lives here too.

The way of one reconcile:
`handlers.Feed.on_event` → `reconcile.cycle.Reconciler.cycle` → `store.Store.deployment_snapshot`
→ `decide.deployment.decide_deployment` → `plan.steps.next_steps` → `reconcile.acting.Actor.change_pods`
→ `cluster.Cluster.create` → `status.deployment.deployment_status` → `cluster.Cluster.write_status`
"""
