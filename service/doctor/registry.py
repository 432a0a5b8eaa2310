"""All checks, in the order of the report."""

from collections.abc import Mapping

from bestofn.service.doctor import checkers, checkpoints, disk, machine, queue, server
from bestofn.service.doctor import settings as configured
from bestofn.service.doctor.findings import Check

CHECKS: Mapping[str, Check] = {
    "program": machine.program,
    "machine": machine.machine,
    "devices": machine.devices,
    "settings": configured.settings_changed,
    "checkpoints": checkpoints.checkpoints,
    "memory": checkpoints.memory,
    "safety": checkers.checkers,
    "disk": disk.disk,
    "queue": queue.queue,
    "server": server.server,
}
