"""Licences of the weights that a user will download: what is known of them, by hub name, and the line that says so."""

import re
from dataclasses import dataclass

from bestofn.judge.names import parse_name
from bestofn.models.hub import is_hub_name

_GEMMA_LINK = "https://ai.google.dev/gemma/terms"
HUB = "https://huggingface.co/"


@dataclass(frozen=True, slots=True)
class Licence:
    """The licence of one part of a checkpoint.

    Attributes:
        part: the weights that it covers.
        name: as the model card names it.
        means: its consequence, in a few words.
        link: where to read it.
    """

    part: str
    name: str
    means: str
    link: str


SHAPES = (Licence("weights", "Apache-2.0", "any use", "https://www.apache.org/licenses/LICENSE-2.0"),)

# What is known of the published repositories. The LICENSE.txt and the model card of the revision in use decide.
_GEMMA = Licence(
    "text encoder (Gemma-2-2B)",
    "Gemma Terms of Use",
    "Google's Prohibited Use Policy applies, and has to be passed on",
    _GEMMA_LINK,
)
_DECODER = Licence(
    "autoencoder (DC-AE)", "that of the repository", "a licence of its own where it is published apart", ""
)
_NVIDIA = (
    'NVIDIA License ("NSCL v2-custom")',
    "taken to be non-commercial; it also speaks of NVIDIA processors and of ShieldGemma-2B as a safety filter",
)
_SPRINT = (
    'NVIDIA License ("NSCL v2-custom") or NVIDIA Open Model License',
    "the card has named both: the first is non-commercial; read the one of your revision",
)
_NVILA = (
    "CC BY-NC 4.0 by the cards of its siblings",
    "non-commercial",
)

_KNOWN: tuple[tuple[re.Pattern[str], str, tuple[str, str], tuple[Licence, ...]], ...] = (
    (re.compile(r"sana[_-]?sprint", re.IGNORECASE), "transformer", _SPRINT, (_GEMMA, _DECODER)),
    (re.compile(r"efficient-large-model/sana", re.IGNORECASE), "transformer", _NVIDIA, (_GEMMA, _DECODER)),
    (re.compile(r"/(nvila|vila)", re.IGNORECASE), "weights", _NVILA, ()),
    (re.compile(r"google/shieldgemma", re.IGNORECASE), "weights", (_GEMMA.name, _GEMMA.means), ()),
)


def licences(name: str) -> tuple[Licence, ...]:
    """What is known of a checkpoint's licences, by its name: "shapes", or a hub name with or without @revision;
    a judge's prefix does not count.

    Empty for a folder and for a repository that is not known here.
    """
    place = parse_name(name).place
    if place == "shapes":
        return SHAPES
    repository = place.partition("@")[0]
    if not is_hub_name(repository):
        return ()
    for pattern, part, (licence, means), others in _KNOWN:
        if pattern.search(repository):
            return (Licence(part, licence, means, f"{HUB}{repository}"), *others)
    return ()


def notice(name: str) -> str | None:
    """One line to show before a checkpoint's weights are downloaded; None for those that are not ("shapes", a folder).

    It says as plainly when nothing is known.
    """
    repository = parse_name(name).place.partition("@")[0]
    if repository == "shapes" or not is_hub_name(repository):
        return None
    known = licences(name)
    if not known:
        return f"{repository}: its licence is not known to bestofn; read {HUB}{repository} before you use it"
    first, *others = known
    also = "".join(f"; {licence.part}: {licence.name}" for licence in others if licence.link)
    return f"{repository} is not ours. {first.part}: {first.name} ({first.means}){also}. Read {first.link}"
