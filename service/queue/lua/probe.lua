#!lua flags=allow-oom
-- Writes nothing, but might: a server that takes no writes refuses it as it would refuse every other script. Returns
-- whether submissions are refused for want of memory, as submit.lua does.
return nearly_full()
