"""Deployments: the (model, judge) pairs that live workers hold, the choice among them, and the cost of a job on one."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bestofn.judge.verdict import Rule
from bestofn.service.core.budget import Prices
from bestofn.service.core.errors import InvalidRequest, Unavailable
from bestofn.service.core.jobs import JobSpec, Revision, Revisions
from bestofn.service.core.workers import JudgeInfo, ModelInfo, WorkerInfo

NO_WORKER_RETRY_SECONDS = 5.0  # a worker that starts now needs at least this long to load its weights


@dataclass(frozen=True, slots=True)
class Deployment:
    """A model and a judge that live workers hold together.

    Attributes:
        capacities: number of candidates that each of these workers holds at once.
        tflops_per_second: known speed of all these workers together.
        pairwise_judge: model of the pairwise judge of the worker that started last; None: no worker has one.
    """

    model: ModelInfo
    judge: JudgeInfo
    capacities: tuple[int, ...]
    tflops_per_second: float = 0.0
    pairwise_judge: str | None = None

    @property
    def judges(self) -> list[JudgeInfo]:
        """Its judge and, where there is one, the second judge."""
        return [self.judge, *([] if self.judge.second is None else [self.judge.second])]

    @property
    def tokenizers(self) -> list[str]:
        """SHA-256 of the tokenizer.json files with which its prompts are counted."""
        return [self.model.tokenizer_sha256, *(j.prompt_limit.tokenizer_sha256 for j in self.judges if j.prompt_limit)]

    def deciding(self, rule: Rule) -> list[JudgeInfo]:
        """The judges that decide by a rule: two with lower_bound. Raises InvalidRequest if there is no second one."""
        if rule is Rule.LOWER_BOUND and self.judge.second is None:
            raise _no_second_judge(self)
        return self.judges if rule is Rule.LOWER_BOUND else [self.judge]


def deployments_of(workers: Iterable[WorkerInfo]) -> list[Deployment]:
    """The deployments of live workers, the one that started last first: during an upgrade the new revision."""
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
    any_model: bool = False,
) -> Deployment:
    """The deployment for a request. A name may be left out if only one is deployed.

    Args:
        live: deployments of warm workers.
        announced: deployments of all workers ever; a job for one of them waits for such a worker.
        model: name of the model, with or without @REVISION; or None.
        judge: name of the judge, likewise.
        rule: ranking rule; lower_bound needs a second judge.
        finals: prefer deployments with a pairwise judge.
        any_model: the model has no effect, so that none is chosen.

    Raises:
        Unavailable: no worker was ever announced.
        InvalidRequest: a name is not deployed, or is missing although several are, or there is no second judge.
    """
    known = [*live, *announced]
    if not known:
        raise Unavailable(
            "no worker has been ready yet; start one with `bestofn worker`, or wait until it has loaded its weights",
            retry_after=NO_WORKER_RETRY_SECONDS,
        )
    current = live or announced
    if not any_model:
        revisions = ([p.model.revision for p in deployments] for deployments in (current, known))
        model = _choose("model", model, *revisions)
        current, known = (
            [p for p in deployments if p.model.revision.is_named(model)] for deployments in (current, known)
        )
    judge = _choose("judge", judge, [p.judge.revision for p in current or known], [p.judge.revision for p in known])
    named = [deployment for deployment in known if deployment.judge.revision.is_named(judge)]
    if finals:
        named = [deployment for deployment in named if deployment.pairwise_judge is not None] or named
    if rule is not Rule.LOWER_BOUND:
        return named[0]
    deployment = next(
        (deployment for deployment in current or known if deployment in named and deployment.judge.second is not None),
        None,
    )
    if deployment is None:
        raise _no_second_judge(named[0], " and a pairwise judge" if finals else "")
    return deployment


def _no_second_judge(deployment: Deployment, where: str = "") -> InvalidRequest:
    """The refusal of rule lower_bound where no worker has a second judge."""
    return InvalidRequest(
        f"rule lower_bound needs a second judge, and no worker of model {deployment.model.revision.name} with judge "
        f"{deployment.judge.revision.name} has one{where}: start workers with BESTOFN_SECOND_JUDGE, or use rule margin",
        field="rule",
    )


def _choose(field: str, name: str | None, current: Sequence[Revision], known: Sequence[Revision]) -> str:
    names = sorted({one.name for one in current})
    listed = ", ".join(names)
    if name is None:
        if len(names) > 1:
            raise InvalidRequest(f"{field} must be named, because several are deployed: {listed}", field=field)
        return names[0]
    if not any(one.is_named(name) for one in known):
        where = " with this model" if field == "judge" else ""
        raise InvalidRequest(f"{field} {name[:100]!a} is not deployed{where}; choose from {listed}", field=field)
    return name


def work_text(amount: float) -> str:
    """An amount of work for a message, in TFLOP: three digits, or all of a great one."""
    return f"{amount:,.0f}" if amount >= 100 else f"{amount:.3g}"


def tflops(spec: JobSpec, deployment: Deployment) -> float:
    """Estimated work of a job in TFLOP; linear attention makes a forward proportional to the number of pixels."""
    judge, *second = (one.tflops_per_forward for one in deployment.deciding(spec.rule))
    if spec.sent:
        return spec.num_samples * (judge + sum(second))
    asked = spec.width, spec.height, spec.num_inference_steps, spec.guidance_scale
    prices = prices_of(deployment, *asked, spec.depth)
    steps = spec.schedule.num_promoted * spec.num_inference_steps * prices.step
    if spec.draft is not None:
        draft = prices_of(deployment, *asked, spec.draft.depth or spec.depth)
        steps += spec.num_samples * spec.draft.num_inference_steps * draft.step
    verdicts = spec.schedule.num_promoted + (0 if spec.draft is None else spec.num_samples)
    return steps + verdicts * prices.verdict + spec.schedule.num_promoted * sum(second)


def prices_of(
    deployment: Deployment, width: int, height: int, steps: int, guidance: float, depth: int | None
) -> Prices:
    """TFLOP of a denoising step and of a verdict for images of this size, with this guidance and depth."""
    info = deployment.model
    spared = 0 if depth is None or info.depth is None else info.depth - depth
    area = width * height / (info.width * info.height)
    guided = 2 if guidance > 1 and not info.guidance_embeds else 1
    return Prices(
        step=area * guided * (info.tflops_per_forward - spared * info.tflops_per_layer),
        verdict=area * info.tflops_per_decode + deployment.judge.tflops_per_forward,
        steps=steps,
    )
