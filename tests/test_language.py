"""Plain technical English: short sentences, and none of the words that hide who does what."""

import ast
import io
import re
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("kernels", "models", "judge", "training", "evaluation", "service", "cli")
CODE = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]
SCRIPTS = [file for suffix in ("lua", "js") for file in sorted((ROOT / "service").rglob(f"*.{suffix}"))]
PAGES = [
    file
    for file in (
        *sorted(ROOT.glob("*.md")),
        *sorted((ROOT / "docs").rglob("*.md")),
        *sorted((ROOT / "models").rglob("*.md")),
    )
    if "bench" not in file.parts
]

MAX_WORDS = 25
AVOIDED = re.compile(
    r"\b(told|tells|whoever|whom|nobody|stands|beside|anew|so many|lacks|hears|goes by|is due|are due)\b", re.IGNORECASE
)
# Words that the project once had for what the field has a word of its own (docs/glossary.md).
PRIVATE = re.compile(
    r"(^|_)(eight_bits?|scaled_rows|finalists?|pupils?|school|teller|learner|fate|ticked|give_way|beside|dealt|pictures?)(_|$)"
)
DESCRIBED = re.compile(r"^ *\w+(?:, \w+)*: (?:of|the same of) .*$", re.MULTILINE)
PRONOUNS = ("it", "they", "this", "what", "whatever", "who")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_WORD = re.compile(r"[A-Za-z][A-Za-z'-]*")


def name(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def docstrings(source: str) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield getattr(node, "lineno", 1), text


def strings(source: str) -> Iterator[tuple[int, str]]:
    """Comments and all string literals: docstrings, errors, log lines, help."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING) or token.type == getattr(tokenize, "FSTRING_MIDDLE", -1):
            yield token.start[0], token.string


def sentences(text: str) -> Iterator[str]:
    """Sentences of prose: without code, equations, tables, headings, links' addresses and inline code."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    text = re.sub(r"(?m)^.*\S {2,}\S.*$", "", text)  # columns of a table
    for paragraph in re.split(r"\n\s*\n|\n(?=\s*(?:[-*|#>]|\d+\. |\w+:\s))", text):
        if paragraph.lstrip().startswith(("|", "#", "    ", ">>>", "```")) or "──" in paragraph or " = " in paragraph:
            continue
        plain = re.sub(r"\]\([^)]*\)|`[^`]*`|\[|\]", " code ", paragraph)
        yield from _SENTENCE_END.split(" ".join(plain.split()))


def long_sentences(text: str) -> list[str]:
    return [s for s in sentences(text) if len(_WORD.findall(s)) > MAX_WORDS]


@pytest.mark.parametrize("file", [*CODE, *SCRIPTS, *PAGES], ids=name)
def test_text_has_none_of_the_avoided_words(file: Path) -> None:
    source = file.read_text(encoding="utf-8")
    texts = strings(source) if file.suffix == ".py" else enumerate(source.splitlines(), 1)
    found = [f"line {line}: {match.group(0)!r}" for line, text in texts for match in AVOIDED.finditer(text)]
    assert not found, f"{name(file)} uses words that CONTRIBUTING.md rules out: {'; '.join(found)}"


def test_names_of_tests_have_no_avoided_word_and_begin_with_no_pronoun() -> None:
    ours = (file for file in (ROOT / "tests").rglob("test_*.py") if "site-packages" not in file.parts)
    texts = [file.read_text(encoding="utf-8") for file in ours]
    names = [name for text in texts for name in re.findall(r"^(?:async )?def test_(\w+)", text, re.MULTILINE)]
    avoided = [one for one in names if AVOIDED.search(one.replace("_", " ")) or one.split("_")[0] in PRONOUNS]
    assert not avoided, f"rename to test_<unit>_<condition>_<result>: {', '.join(avoided)}"


def identifiers(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        for field in ("id", "attr", "arg", "name"):
            found = getattr(node, field, None)
            if isinstance(found, str):
                yield re.sub(r"(?<=[a-z])(?=[A-Z])", "_", found).lower()


@pytest.mark.parametrize("file", CODE, ids=name)
def test_names_are_words_of_the_field(file: Path) -> None:
    found = {one for one in identifiers(file.read_text(encoding="utf-8")) if PRIVATE.search(one)}
    assert not found, f"{name(file)} has names that docs/glossary.md has another word for: {', '.join(sorted(found))}"


def test_names_of_classes_have_one_meaning_each() -> None:
    homes = defaultdict(list)
    for file in CODE:
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].append(name(file))
    shared = {one: where for one, where in homes.items() if len(where) > 1}
    assert shared.keys() == {"Engine"}, f"one name, several meanings: {shared}"  # the engine and its contract


@pytest.mark.parametrize("file", CODE, ids=name)
def test_descriptions_of_parameters_and_values_are_noun_phrases(file: Path) -> None:
    source = file.read_text(encoding="utf-8")
    found = [match.group().strip() for _, text in docstrings(source) for match in DESCRIBED.finditer(text)]
    found += [text for _, text in strings(source) if text.startswith(("# of ", "# the same of "))]
    assert not found, f"{name(file)} describes something by 'of ...' alone: {'; '.join(found)}"


@pytest.mark.parametrize("file", [*CODE, *PAGES], ids=name)
def test_sentences_have_at_most_25_words(file: Path) -> None:
    source = file.read_text(encoding="utf-8")
    texts = docstrings(source) if file.suffix == ".py" else [(1, source)]
    found = [f"line {line}: {sentence!r}" for line, text in texts for sentence in long_sentences(text)]
    assert not found, f"{name(file)} has sentences of more than {MAX_WORDS} words: {'; '.join(found)}"
