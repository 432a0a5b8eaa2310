"""One page of a large job's candidates and bracket."""

from bestofn.service.core.schemas import JobResult

PAGE = 256
MAX_PAGE = 4096


def page(result: JobResult, offset: int, limit: int) -> JobResult:
    """Candidates and matches number `offset` to `offset + limit - 1` (0-based), and the url of the next page, if any.

    Matches are numbered round after round. Every page lists all rounds, most of them empty, so that a reader appends
    round r of each page to its round r. N candidates play at most N - 1 matches and byes a round, so matches may need
    a page or so more than candidates.
    """
    end = offset + limit
    bracket, number = [], 0
    for matches in result.bracket:
        bracket.append(matches[max(0, offset - number) : max(0, end - number)])
        number += len(matches)
    more = end < max(len(result.candidates), number)
    return result.model_copy(
        update={
            "candidates": result.candidates[offset:end],
            "bracket": bracket,
            "next": f"/jobs/{result.id}?offset={end}&limit={limit}" if more else None,
        }
    )
