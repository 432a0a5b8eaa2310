"""The engine: slots of one device, filled with candidates of many jobs."""
