"""The data plane of m3serve: prices, queues and relays requests; of Kubernetes it knows EndpointSlices alone.

Way of one request: `http.client_end.ClientConnection` → `routes.Routes.serve` → `relay.Exchange.begin` →
`intake.Intake` → `prices.PriceTable.quote` → `quotas.Quota.reserve` → `lanes.Lanes.offer` →
`placement.Placement.choose` → `attempt.Attempt` → `http.worker_end.WorkerConnection` → `reply` →
`ledger.Ledger.settle` → `journal.Journal.settled`.
Beside it, and never waited for: `probes`, `caches`, `shared.sharing` (Redis), `admin`, `tracing`. All parts are put
together in `router.Router`; `server` runs one of it, or `processes` several.
"""
