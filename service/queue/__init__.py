"""The queue: Redis streams, a ring of jobs and atomic Lua scripts."""
