"""The data plane of m3serve: prices, queues and relays requests; of Kubernetes it knows EndpointSlices alone.

Way of one request: `http.client_end.ClientConnection` → `routes.Routes.serve` → `relay.Exchange.begin` →
`request.parse` → `prices.PriceTable.context_tier` → `lanes.Lanes.offer` → `placement.choose` →
`http.worker_end.WorkerConnection` → `relay.Exchange.worker_answered` → `ledger.Ledger.settle`.
"""
