"""Every Redis key and channel of the queue: the one place that spells them, for Python and for the scripts.

pairs                            hash    pair -> WorkerInfo of the worker that last announced it, of all pairs ever
pair:<pair>:workers              zset    worker -> time (ms) at which its announcement expires
pair:<pair>:capacity             hash    worker -> candidates it holds at once
pair:<pair>:infos                hash    worker -> its WorkerInfo
pair:<pair>:<priority>:callers   zset    caller -> start of its next turn, of callers with heats to dispatch: the ring
pair:<pair>:<priority>:jobs:<caller>  list  its jobs with heats to dispatch, next first
pair:<pair>:<priority>:clock     hash    now: start of the last turn; of:<caller>: end of its last turn; in candidates
pair:<pair>:<priority>:ready     stream  heats dispatched and not finished; read by one consumer group
pair:<pair>:<priority>:dispatched  int   candidates of those heats
job:<job>                        hash    specification, status, counters, leaders; dead:<heat>: why it failed
job:<job>:heats                  hash    heat -> its record; the first completion wins; the finals' record comes last
job:<job>:progress               hash    heat -> "judged steps forwards"
job:<job>:events                 stream  capped
job:<job>:winner_images          hash    candidate -> heat, of the images that are stored
job:<job>:images:<heat>          hash    candidate -> bytes, or a reference to their file (image_store.py)
job:<job>:staged:<heat>:<by>     hash    the same of a heat that is not yet completed, or of a job not yet accepted
job:<job>:sent                   hash    the same of the images that the caller sent, until the job ends
job:<job>:thumbnails             hash    candidate -> bytes, of jobs that asked
tombstone:<job>                  string  "status caller" of an expired job that had been started
idempotency:<key>                hash    job, fingerprint of its request
orphans:<call>                   list    jobs whose caller hung up and may call again
backlog                          hash    jobs, candidates, gflop that wait or run; <priority>:jobs ... of a priority
callers                          hash    caller -> candidates of its jobs that wait or run
queued                           zset    job -> time (ms) of its submission, of jobs that have not started
deadlines                        zset    job -> time (ms) at which it has to end, of jobs with a deadline
ended                            stream  how jobs have ended, for metrics; capped
images                           hash    job -> bytes of images it holds or may come to hold; "total"
images_folder                    string  name of the mark in the folder of images (image_store.py)
images:expiry                    zset    job -> time (ms) at which those expire
holdings                         hash    job -> "images kept caller": bytes of its images, and of all else that is kept
held                             hash    kept: the sum of all jobs; images:<caller>, kept:<caller>: of one API key;
                                         gflop:<caller>: of its jobs that wait or run
abandoned                        hash    pair of another schema version -> time (ms) since when it has no worker
webhooks                         zset    job -> time (ms) of the next attempt at its webhook, of jobs that have ended
webhook:<job>                    hash    url, status, ended, attempts; body: what the attempts so far have sent
dead_letters                     stream  heats that failed for good
tokenizer:<sha256>               string  a tokenizer.json
signing_key                      string  secret of the addresses of images that need no key
control                          channel jobs that have ended before their heats did
"""

import hashlib
import json
import re
from typing import Literal, get_args

from bestofn.service.core.jobs import Priority, Revision

GROUP = "workers"
PRIORITIES: tuple[Priority, ...] = get_args(Priority)  # in order of precedence

Name = Literal[
    "pairs",
    "workers",
    "capacity",
    "infos",
    "ring",
    "jobs",
    "clock",
    "ready",
    "dispatched",
    "job",
    "heats",
    "progress",
    "events",
    "winner_images",
    "images",
    "staged",
    "sent",
    "thumbnails",
    "tombstone",
    "idempotency",
    "orphans",
    "backlog",
    "callers",
    "queued",
    "deadlines",
    "ended",
    "images_folder",
    "reserved",
    "reserved_until",
    "abandoned",
    "holdings",
    "held",
    "webhooks",
    "webhook",
    "dead_letters",
    "tokenizer",
    "signing_key",
    "control",
]
_TEMPLATES: dict[Name, str] = {name: name for name in get_args(Name)} | {  # those with parts, or another name
    "workers": "pair:%s:workers",
    "capacity": "pair:%s:capacity",
    "infos": "pair:%s:infos",
    "ring": "pair:%s:%s:callers",
    "jobs": "pair:%s:%s:jobs:%s",
    "clock": "pair:%s:%s:clock",
    "ready": "pair:%s:%s:ready",
    "dispatched": "pair:%s:%s:dispatched",
    "job": "job:%s",
    "heats": "job:%s:heats",
    "progress": "job:%s:progress",
    "events": "job:%s:events",
    "winner_images": "job:%s:winner_images",
    "images": "job:%s:images:%s",
    "staged": "job:%s:staged:%s:%s",
    "sent": "job:%s:sent",
    "thumbnails": "job:%s:thumbnails",
    "tombstone": "tombstone:%s",
    "idempotency": "idempotency:%s",
    "orphans": "orphans:%s",
    "reserved": "images",
    "reserved_until": "images:expiry",
    "webhook": "webhook:%s",
    "tokenizer": "tokenizer:%s",
}


class Keys:
    """`Keys("bestofn")("heats", job)` is the key of that job's heats."""

    def __init__(self, namespace: str) -> None:
        """Raises ValueError if `namespace` has characters with a meaning in patterns or formats."""
        if not re.fullmatch(r"[A-Za-z0-9_.:{}-]+", namespace):
            raise ValueError(f"a namespace is made of letters, digits and _ . : {{ }} -, got {namespace!r}")
        self.namespace = namespace

    def __call__(self, name: Name, *parts: str | int) -> str:
        return f"{self.namespace}:{_TEMPLATES[name] % parts}"

    def lua(self) -> str:
        """The same function for the scripts: `key('heats', job)`."""
        names = ", ".join(f"{name} = '{self.namespace}:{template}'" for name, template in _TEMPLATES.items())
        priorities = ", ".join(f"'{name}'" for name in PRIORITIES)
        return (
            f"local GROUP, PRIORITIES = '{GROUP}', {{{priorities}}}\n"
            f"local NAMES = {{{names}}}\n"
            "local function key(name, ...) return string.format(NAMES[name], ...) end\n"
        )


def pair_id(schema_version: int, model: Revision, judge: Revision, second: Revision | None = None) -> str:
    """Short name of a pair of model and judge; with a second judge or another schema version it is another pair."""
    revisions = [revision.model_dump() for revision in (model, judge, second) if revision is not None]
    named = [schema_version, *revisions] if schema_version else revisions
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()[:16]


def opaque(key: str) -> str:
    """A client's key of any length and with any characters, hashed as a part of a Redis key."""
    return hashlib.sha256(key.encode()).hexdigest()
