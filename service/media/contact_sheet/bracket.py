"""The knockout as a tree: half of the entrants on each side, the winner in the middle.

Lengths are in pixels, from the bracket's top and the sheet's left edge.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from bestofn.service.core.schemas import MatchOut
from bestofn.service.media.contact_sheet.style import FAINT, GOLD, MARGIN, PAPER, WIDTH, paste, square, text

MAX_ROUNDS = 6  # rounds that are drawn: the last of a longer knockout
RUNNER_UP = 132  # pixels, side of the images next to the winner


@dataclass(slots=True)
class Node:
    """A candidate who reached a round. The two who met for the place are its children."""

    candidate: int
    children: tuple["Node", ...] = ()
    lost: bool = False
    x: float = 0.0
    y: float = 0.0
    side: int = 0

    @property
    def entrants(self) -> Iterator["Node"]:
        if not self.children:
            yield self
        for child in self.children:
            yield from child.entrants

    @property
    def everyone(self) -> Iterator["Node"]:
        yield self
        for child in self.children:
            yield from child.everyone

    @property
    def rounds(self) -> int:
        return 1 + max((child.rounds for child in self.children), default=-1)


@dataclass(frozen=True, slots=True)
class Layout:
    """A bracket whose images have their places."""

    root: Node
    height: int
    entrants: int


def layout(rounds: Sequence[Sequence[MatchOut]], winner: int) -> Layout | None:
    """Positions of a knockout of any number of entrants; None for a single candidate.

    First-round images shrink with their number; each later round's are larger, up to the final in the middle.
    """
    root = _tree(rounds, winner)
    if not root.children:
        return None
    columns = root.rounds
    most = max(sum(1 for _ in half.entrants) for half in root.children)
    first = RUNNER_UP if columns == 1 else max(26, min(88, 760 // most - 8))
    sides = [round(first * (RUNNER_UP / first) ** (i / max(1, columns - 1))) for i in range(columns)]
    heights = [_stack(half, columns - 1, sides) for half in root.children]
    root.side = round(max(236, min(330, 0.4 * max(heights))))
    height = max(*heights, root.side + 2 * 64)
    gap = min(96.0, (WIDTH / 2 - MARGIN - root.side / 2 - sum(sides)) / columns)
    root.x, root.y = WIDTH / 2, height / 2
    for half, tall, outwards in zip(root.children, heights, (-1, 1), strict=True):
        for entrant in half.entrants:
            entrant.y += (height - tall) / 2
        _spread(half, root, gap, outwards)
    return Layout(root, round(height), sum(1 for _ in root.entrants))


def _tree(rounds: Sequence[Sequence[MatchOut]], winner: int) -> Node:
    standing: dict[int, Node] = {}
    for matches in rounds[max(0, len(rounds) - MAX_ROUNDS) :]:
        entered = standing
        standing = dict(entered)  # a candidate without a match in a round has a bye
        for match in matches:
            if match.b is None or match.a == match.b:
                standing.setdefault(match.a, Node(match.a))
                continue
            pair = tuple(entered.get(candidate) or Node(candidate) for candidate in (match.a, match.b))
            for node in pair:
                node.lost = node.candidate != match.winner
                standing.pop(node.candidate, None)
            standing[match.winner] = Node(match.winner, pair)
    return standing.get(winner) or Node(winner)


def _stack(half: Node, column: int, sides: Sequence[int], top: float = 0.0) -> float:
    """Sizes the images by their column and stacks the entrants from `top` down; returns where the stack ends."""
    half.side = sides[column]
    for child in half.children:
        top = _stack(child, column - 1, sides, top)
    if half.children:
        half.y = (half.children[0].y + half.children[1].y) / 2
        return top
    pitch = half.side + max(6, half.side // 6)
    half.y = top + pitch / 2
    return top + pitch


def _spread(node: Node, next_round: Node, gap: float, outwards: int) -> None:
    """Places a half's images from the middle outwards, each pair about the height of the place they met for."""
    node.x = next_round.x + outwards * (next_round.side / 2 + gap + node.side / 2)
    for child in node.children:
        _spread(child, node, gap, outwards)
    if node.children:
        node.y = (node.children[0].y + node.children[1].y) / 2


def draw_bracket(
    sheet: Image.Image,
    pen: ImageDraw.ImageDraw,
    bracket: Layout,
    top: int,
    images: Mapping[int, Image.Image],
    label: str,
) -> None:
    """Draws a bracket whose upper edge is at `top`; losers are dimmed, the winner's way is golden.

    Args:
        images: RGB image of every candidate in the bracket.
        label: below the winner.
    """
    root = bracket.root
    _connect(pen, root, top, root.candidate, golden=False)
    _connect(pen, root, top, root.candidate, golden=True)
    for node in root.everyone:
        _portrait(sheet, pen, node, top, images[node.candidate], golden=node.candidate == root.candidate)
    below = top + root.y + root.side / 2
    text(pen, (root.x, below + 32), label, 22, GOLD, "mm", bold=True)


def _connect(pen: ImageDraw.ImageDraw, node: Node, top: int, winner: int, *, golden: bool) -> None:
    """Lines from each pair to the place they met for: the winner's own, or all others."""
    for child in node.children:
        _connect(pen, child, top, winner, golden=golden)
        if (child.candidate == winner) is not golden:
            continue
        inwards = 1 if child.x < node.x else -1
        start = child.x + inwards * child.side / 2
        end = node.x - inwards * node.side / 2
        bend = (start + end) / 2
        y, level = round(top + child.y), round(top + node.y)
        if abs(y - level) < 2:
            y = level
        path = [(round(start), y), (round(bend), y), (round(bend), level), (round(end), level)]
        pen.line(path, fill=GOLD if golden else FAINT, width=4 if golden else 2, joint="curve")


def _portrait(
    sheet: Image.Image, pen: ImageDraw.ImageDraw, node: Node, top: int, image: Image.Image, *, golden: bool
) -> None:
    x, y = round(node.x - node.side / 2), round(top + node.y - node.side / 2)
    image = square(image, node.side)
    if node.lost:
        grey = image.convert("L").convert("RGB")
        image = Image.blend(Image.blend(image, grey, 0.5), Image.new("RGB", image.size, PAPER), 0.45)
    radius = max(3, node.side // 16)
    if golden:
        rim = 6 if node.side > RUNNER_UP else 3
        edge = node.side - 1 + rim
        pen.rounded_rectangle((x - rim, y - rim, x + edge, y + edge), radius + rim, fill=GOLD)
    paste(sheet, image, (x, y), radius=radius)
