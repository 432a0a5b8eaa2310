#!lua flags=allow-oom
-- Ends the jobs whose deadline has passed, for those who wait while no worker's heartbeat does it.
expire()
