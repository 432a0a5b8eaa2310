"""The service: queue, engine, worker, HTTP API, client and command line."""
