"""Coverage-guided fuzzing of everything that reads what lands: lines, formats, normalization, YAML, metric, validator.

    python -m benchmarks.fuzz --seconds 60                  look for an input that breaks an invariant
    python -m benchmarks.fuzz --seconds 60 --corpus .fuzz   keep the inputs that reached new code, and start from them
    python -m benchmarks.fuzz --reproduce crash-…           run one input that was found

The invariants are those of the property tests (`benchmarks/invariants.py`): never an exception, exactly one outcome for
each line, the quarantine verbatim, scores within bounds, YAML as PyYAML itself reads it, bounded time. What is found is
written to a file `crash-…` and belongs into the tests of `intake` (`test_fuzzed.py`). Needs the extra `fuzz` (atheris,
on Linux).
"""

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import orjson

with contextlib.suppress(ImportError):  # without it a found input can still be reproduced
    import atheris

MAX_INPUT_BYTES = 6_000
"""Long enough for a whole real row, short enough for thousands of inputs a second."""
MEMORY_MIB = 3_000

TOKENS = (
    *('"concept": "', '"requirements_yaml": "', '"teacher_product_vision": "', '"teacher_product_owner_review": "'),
    *('"score": ', '"prompt": "', '"output": "', '"response": "', '"messages": [', '{"role": "user", "content": "'),
    *('"conversations": [{"from": "gpt", "value": "', '"instruction": "', '"completion": "', '"custom_id": "', "null"),
    *('"weight": 0', '"finish_reason": "length"', "<think>", "</think>", "EXISTING_VISION:\n", "misaligned", "~~~"),
    *('{"input": {', '"output": {', "NaN", "Infinity", "-1", "1e400", "\\ud800", "\\u0000", "\\n", "\\t", "\xff\xfe"),
    *("```yaml VISION\n", "```yaml REVIEW\n", "```\n", "CONCEPT:\n", "REQUIREMENTS:\n", "VISION:", "product_name: "),
    *("product_summary: ", "status: ", "aligned", "needs_adjustment", "conflicts", "requirements_alignment:\n"),
    *("  gaps: []\n", "recommended_actions:\n- ", "narrative: ", "functional_requirements:\n- id: FR001\n", "FR001"),
    *("&a ", "*a", "<<: ", "!!str ", "!!python/none ", "? ", ": ", "- ", "|\n  ", ">-\n  ", "'", '\\"', "#"),
    *("%YAML 1.1\n", "---\n", "...\n", "2024-01-01", "2024-99-99", "0x", "0o7", "1:59:59", "1_000", ".inf", "yes"),
    *("~", "null", "\u2028"),
)
NASTY_LINES = (
    *(b"", b"{", b"[]", b"null", b'{"a": 1}', b"\xff\xfe", b'{"concept": "\x00"}'),
    *(b'{"score": NaN}', b'{"a": 1, "a": 2}'),
    *(b'{"prompt": "x", "response": "y"}', b'{"metadata": ' + b"[" * 200 + b"]" * 200 + b"}", b'{"score": 1e999}'),
    *(b'{"messages": [3]}', b'{"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}'),
)
NASTY_YAML = ("a: &a [*a]", "a: " + "[" * 60, "- " * 60, "a: " + "9" * 5_000, "a: 1:59:59", "last_updated: 2024-99-99")


def main() -> None:
    """Fuzz for a given time, or run one input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--corpus", type=Path, default=None, help="folder that keeps interesting inputs between runs")
    parser.add_argument("--reproduce", type=Path, default=None, help="run this one input and show what goes wrong")
    arguments = parser.parse_args()
    if arguments.reproduce:
        run_input(arguments.reproduce.read_bytes())
        print("nothing went wrong")
        return
    if "atheris" not in globals():
        sys.exit("Fuzzing needs atheris: make setup EXTRAS=fuzz")
    with atheris.instrument_imports(include=["po_assets.product_owner", "po_assets.intake"]):
        import benchmarks.invariants  # noqa: F401
    with tempfile.TemporaryDirectory() as temporary:
        corpus = arguments.corpus or Path(temporary) / "corpus"
        corpus.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(seeds()):
            (corpus / f"seed-{number:03d}").write_bytes(seed)
        dictionary = Path(temporary) / "tokens"
        dictionary.write_text("".join(f'"{_escaped(token)}"\n' for token in TOKENS))
        options = (
            f"-max_total_time={arguments.seconds}",
            f"-max_len={MAX_INPUT_BYTES}",
            f"-rss_limit_mb={MEMORY_MIB}",
            "-timeout=20",
            f"-dict={dictionary}",
            "-print_final_stats=1",
            f"-artifact_prefix={arguments.corpus.parent if arguments.corpus else Path.cwd()}/",
        )
        atheris.Setup([sys.argv[0], *options, str(corpus)], run_input)
        atheris.Fuzz()  # ends the process


def run_input(data: bytes) -> None:
    """Give one input to what its first byte stands for."""
    from benchmarks.invariants import check_documents, check_landed, check_texts

    kind, rest = data[:1], data[1:]
    texts = [part.decode(errors="replace") for part in rest.split(b"\x1e")]
    first, second, third, fourth = (texts + [""] * 4)[:4]
    if kind == b"L":
        check_landed(rest)
    elif kind == b"D":
        check_documents(first, second, third)
    elif kind == b"T":
        check_texts(first, second)
    elif kind == b"P":
        check_landed(orjson.dumps({"prompt": first, "response": second}))
    else:  # the four texts of a row, so that the fuzzer need not learn how JSON escapes
        row = {
            "concept": first,
            "requirements_yaml": second,
            "teacher_product_vision": third,
            "teacher_product_owner_review": fourth,
            "score": 0.9,
        }
        check_landed(orjson.dumps(row))


def seeds() -> Iterator[bytes]:
    """Rows of the generator, one of them in every format, nasty lines, and the documents of good and odd answers."""
    from po_assets.product_owner import build_prompt, format_answer
    from po_assets.sample_data.records import generate_rows, to_line

    generated = list(generate_rows(12))
    yield from (b"L" + to_line(row) for row in generated)
    row = next(row for row in generated if "teacher_product_vision" in row)
    names = ("concept", "requirements_yaml", "teacher_product_vision", "teacher_product_owner_review")
    concept, requirements, vision, review = texts = [row[name] for name in names]
    prompt, answer = build_prompt(concept, requirements), format_answer(vision, review)
    for other in rows_in_other_formats(texts, prompt, answer):
        yield b"L" + orjson.dumps(other)
    yield b"L\xef\xbb\xbf" + orjson.dumps({"prompt": prompt, "response": answer}) + b"\r\n\n{}"
    yield from (b"L" + line for line in NASTY_LINES)
    for kind, parts in (
        ("D", (requirements, vision, review)),
        ("R", texts),
        ("P", (prompt, answer)),
        ("T", (prompt, answer)),
        ("D", ("", "a: &a [x]\nb: [*a, *a]", "last_updated: 2024-01-01\nstatus: 'yes' # no")),
        *(("R", (concept, requirements, yaml, review)) for yaml in NASTY_YAML),
    ):
        yield (kind + "\x1e".join(parts)).encode()


def rows_in_other_formats(texts: Sequence[str], prompt: str, answer: str) -> Iterator[dict[str, object]]:
    """The same row in the formats that the generator does not write, and with a prompt that shows the vision."""
    concept, requirements, vision, review = texts
    asked = {"concept_id": "C-1", "concept": concept, "requirements_yaml": requirements, "tier": "simple"}
    yield {"input": asked, "output": {"product_vision": vision, "product_owner_review": review}, "score": 0.9}
    yield {"prompt": prompt, "response": answer}
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    yield {"messages": turns}
    yield {"prompt": turns[:1], "completion": turns[1:], "output": None}
    yield {"prompt": prompt, "chosen": answer, "rejected": "no"}
    yield {
        "conversations": [{"from": "human", "value": prompt}, {"from": "gpt", "value": answer}],
        "system": "Be kind.",
    }
    yield {"instruction": prompt, "input": "", "output": f"<think>{answer}</think>{answer}"}
    choice = {"index": 0, "message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}
    yield {
        "custom_id": "1",
        "body": {"messages": turns[:1]},
        "response": {"body": {"choices": [choice]}},
        "error": None,
    }
    consumer = "CONCEPT:\n{}\n\nEXISTING_VISION:\n{}\n\nREQUIREMENTS:\n{}\n\nFollow the exact output format."
    yield {
        "prompt": consumer.format(concept, vision, requirements),
        "output": answer,
        "metadata": '{"a": 1}',
        "weight": 1,
    }
    leaking = (
        f"```yaml VISION\n{vision}\n```\n\n```yaml REQUIREMENTS\n{requirements}\n```\n\nRespond with two YAML blocks."
    )
    yield {"prompt": leaking, "output": answer, "score": "0.9"}


def _escaped(token: str) -> str:
    """A token as libFuzzer's dictionaries are written."""
    return "".join(f"\\x{byte:02x}" for byte in token.encode("utf-8", "surrogatepass"))


if __name__ == "__main__":
    main()
