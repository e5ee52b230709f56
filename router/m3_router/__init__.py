"""The data plane of m3serve: prices, queues and relays requests; of Kubernetes it knows EndpointSlices alone.

Way of one request: `http.client_end.ClientConnection` → `relay.routes.Routes.serve` → `relay.relay.Exchange.begin` →
`relay.intake.Intake` → `money.prices.PriceTable.quote` → `tenants.quotas.Quota.reserve` → `lanes.lanes.Lanes.offer` →
`placement.placement.Placement.choose` → `relay.attempt.Attempt` → `http.worker_end.WorkerConnection` → `relay.reply` →
`money.ledger.Ledger.settle` → `money.journal.Journal.settled`.
Beside it, and never waited for: `placement.probes`, `placement.caches`, `shared.sharing` (Redis), `admin`,
`telemetry.tracing`. All parts are put together in `router.Router`; `server` runs one of it, or `processes` several.
"""
