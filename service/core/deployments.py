"""Deployments: the (model, judge) pairs that live workers hold, and the choice among them for a request."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bestofn.judge.verdict import Rule
from bestofn.service.core.errors import InvalidRequest, Unavailable
from bestofn.service.core.jobs import Revisions
from bestofn.service.core.workers import JudgeInfo, ModelInfo, WorkerInfo

NO_WORKER_RETRY_SECONDS = 5.0  # a worker that starts now needs at least this long to load its weights


@dataclass(frozen=True, slots=True)
class Deployment:
    """A model and a judge, with a second one or without, that one worker holds together, with the capacities of the
    live workers that hold them."""

    model: ModelInfo
    judge: JudgeInfo
    capacities: tuple[int, ...]
    tflops_per_second: float = 0.0  # of all these workers, as far as it is known
    pairwise_judge: str | None = None  # the pairwise judge that a live worker asks, the one that started last first


def deployments_of(workers: Iterable[WorkerInfo]) -> list[Deployment]:
    """The pairs among workers' cards, the one whose worker started last first: during an upgrade the new revision."""
    groups: dict[Revisions, list[WorkerInfo]] = {}
    for info in sorted(workers, key=lambda info: (-info.started_at, info.worker)):
        groups.setdefault(info.revisions, []).append(info)
    return [
        Deployment(
            held[0].model,
            held[0].judge,
            tuple(info.capacity for info in held),
            sum(info.tflops_per_second or 0.0 for info in held),
            next((info.pairwise_judge for info in held if info.pairwise_judge is not None), None),
        )
        for held in groups.values()
    ]


def choose_deployment(
    live: Sequence[Deployment],
    announced: Sequence[Deployment],
    model: str | None,
    judge: str | None,
    rule: Rule = Rule.MARGIN,
    *,
    finals: bool = False,
) -> Deployment:
    """The pair that serves a request that names `model` and `judge`, or leaves them out where there is one name only.

    Args:
        live: pairs of workers that are warm now.
        announced: pairs of all workers that ever were: a job for one of those waits until such a worker is back.
        model: a name, or None.
        judge: a name, or None.
        rule: the lower bound is for workers with a second judge.
        finals: such workers go first as have a pairwise judge.

    Raises:
        Unavailable: there was never a worker.
        InvalidRequest: a name that is not deployed, or none where one has to be chosen, or no second judge.
    """
    known = [*live, *announced]
    if not known:
        raise Unavailable(
            "no worker has been ready yet; start one with `bestofn worker`, or wait until it has loaded its weights",
            retry_after=NO_WORKER_RETRY_SECONDS,
        )
    current = live or announced
    model = _choose("model", model, [p.model.revision.name for p in current], [p.model.revision.name for p in known])
    current, known = ([p for p in deployments if p.model.revision.name == model] for deployments in (current, known))
    judge = _choose(
        "judge", judge, [p.judge.revision.name for p in current or known], [p.judge.revision.name for p in known]
    )
    named = [deployment for deployment in known if deployment.judge.revision.name == judge]
    if finals:
        named = [deployment for deployment in named if deployment.pairwise_judge is not None] or named
    if rule is not Rule.LOWER_BOUND:
        return named[0]
    deployment = next(
        (deployment for deployment in current or known if deployment in named and deployment.judge.second is not None),
        None,
    )
    if deployment is None:
        raise no_second_judge(named[0], " and a pairwise judge" if finals else "")
    return deployment


def no_second_judge(deployment: Deployment, where: str = "") -> InvalidRequest:
    """The refusal of rule lower_bound where no worker has a second judge."""
    return InvalidRequest(
        f"rule lower_bound needs a second judge, and no worker of model {deployment.model.revision.name} with judge "
        f"{deployment.judge.revision.name} has one{where}: start workers with BESTOFN_SECOND_JUDGE, or use rule margin",
        field="rule",
    )


def _choose(field: str, name: str | None, current: Sequence[str], known: Sequence[str]) -> str:
    listed = ", ".join(sorted(set(current)))
    if name is None:
        if len(set(current)) > 1:
            raise InvalidRequest(f"{field} has to be named, since several are deployed: {listed}", field=field)
        return current[0]
    if name not in known:
        beside = " beside this model" if field == "judge" else ""
        raise InvalidRequest(f"{field} {name[:100]!a} is not deployed{beside}; choose from {listed}", field=field)
    return name
