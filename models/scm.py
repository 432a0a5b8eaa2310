"""The consistency solver of SANA-Sprint (SCM, TrigFlow): few steps, fresh noise between them.

The network is a flow model; TrigFlow's angle u is mapped to the flow's time t and its output back
(SANA-Sprint, arXiv 2503.09641, section 3.1, "training-free transformation").
"""

import itertools
import math

MAX_ANGLE = 1.57080  # u of pure noise; diffusers' and the paper's value
MIDDLE_ANGLE = 1.3  # u after the first of two steps


def scm_angles(steps: int) -> list[float]:
    """The angles u_0 > ... > u_S = 0: [1.5708, 1.3, 0] for two steps, evenly spaced otherwise."""
    if steps == 2:
        return [MAX_ANGLE, MIDDLE_ANGLE, 0.0]
    return [MAX_ANGLE * (steps - i) / steps for i in range(steps + 1)]


def scm_rows(steps: int) -> tuple[list[float], list[tuple[float, ...]]]:
    """Angles and solver-table rows (t, k, p, q, a, b, c, n) in units of ``sigma_data``, which then cancels.

    At angle u, with t = sin u / (sin u + cos u) and r = sqrt(t^2 + (1 - t)^2)::

        F   = network(r x, t)
        v   = ((1 - 2t) r x + (1 - 2t + 2t^2) F) / r        TrigFlow's velocity
        m   = cos u x - sin u v                             the data prediction
        x'  = cos u' m + sin u' z                           noised again to the next angle u'
    """
    angles = scm_angles(steps)
    rows: list[tuple[float, ...]] = []
    for u, after in itertools.pairwise(angles):
        t = math.sin(u) / (math.sin(u) + math.cos(u))
        r = math.hypot(t, 1 - t)
        p = math.cos(u) - math.sin(u) * (1 - 2 * t)
        q = -math.sin(u) * (1 - 2 * t + 2 * t * t) / r
        rows.append((t, r, p, q, 0.0, math.cos(after), 0.0, math.sin(after)))
    return angles, rows
