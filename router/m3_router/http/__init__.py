"""HTTP/1.1 as bytes: the client's end and the worker's end of a relayed exchange. Knows no model, tenant or price."""
