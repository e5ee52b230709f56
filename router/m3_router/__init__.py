"""The data plane of m3serve: prices, queues and relays requests; of Kubernetes it knows EndpointSlices alone.

Way of one request: `http.client_end.ClientConnection` -> `relay.Relay.serve` -> `request.parse` ->
`tenants.Tenants.identify` -> `prices.PriceTable.quote` -> `lanes.Lanes.offer` -> `placement.choose` ->
`http.worker_end.WorkerConnection` -> `ledger.Ledger.settle`.
"""
