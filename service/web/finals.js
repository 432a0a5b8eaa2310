// The finals: matches before the pairwise judge, with its answers in both orders.

import { small } from "./bracket.js";
import { matchesOf } from "./job.js";
import { $, element, onPick, plural } from "./text.js";

export class FinalsView {
  #drawn = null; // what is drawn

  /** `open(index)` shows a candidate large. */
  constructor(open) {
    onPick($("finals-played"), open);
  }

  draw(job) {
    $("finals-played").hidden = !job.finals;
    if (!job.finals) return;
    const state = `${job.id} ${job.status} ${JSON.stringify(job.finals)} ${job.bracket.length}`;
    if (state === this.#drawn) return;
    this.#drawn = state;
    $("finals-facts").textContent = facts(job);
    const { entrants, rounds } = job.finals;
    const sections = rounds.map((matches, round) => {
      const cards = matches.map((match) => {
        const sides = [match.a, match.b].filter((index) => index !== null);
        const tiles = sides.map((index) => small(job, index, index === match.winner ? "won" : "lost"));
        const [how, answers] = describe(match);
        return element("li", {}, ...tiles, element("p", {}, element("b", {}, how), element("small", {}, answers)));
      });
      return titled(round === rounds.length - 1 && !entrants ? "Final" : `Round ${round + 1}`, cards);
    });
    if (entrants) {
      const left = rounds.length ? rounds.at(-1).map(({ winner }) => winner) : entrants;
      const now = element("li", {}, ...left.map((index) => small(job, index, "meets")));
      sections.push(titled("Meeting now", [now]));
    }
    $("finals-rounds").replaceChildren(...sections);
  }
}

/** A match in words: how it ended, and what the judge answered. */
export function describe({ a, b, answers, winner }) {
  if (b === null) return [`#${a} waits`, "an odd number is left, and it is the best by verdict"];
  const [first, second] = answers;
  if (first === second && first !== null) return [`#${winner} beats #${winner === a ? b : a}`, "named in both orders"];
  const name = (answer) => (answer === null ? "neither" : `#${answer}`);
  const said = `with #${a} first the judge named ${name(first)}, with #${b} first ${name(second)}`;
  return [`#${a} and #${b} draw`, `${said}; #${winner} goes on, the better by verdict`];
}

function facts(job) {
  const { played, matches } = matchesOf(job.finals);
  const { judge, entrants, rounds } = job.finals;
  if (entrants) return `before ${judge}, ${played} of ${plural(matches, "match", "matches")} played`;
  const led = job.bracket.at(-1)?.[0].winner;
  const other = led === undefined || led === rounds.at(-1)[0].winner ? "" : `; by verdict #${led} was the best`;
  return `${plural(matches, "match", "matches")} before ${judge}${other}`;
}

const titled = (title, cards) => element("section", {}, element("h3", {}, title), element("ol", {}, ...cards));
