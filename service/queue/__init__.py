"""The queue: Redis streams, a ring of jobs and five atomic Lua scripts."""
