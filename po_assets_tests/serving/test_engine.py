"""A loaded model answers as the evaluation would, and a question on the command line ends with its verdict."""

import json
import math
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from starlette.testclient import TestClient
from upath import UPath

from po_assets.dag import gate_record, write_gate
from po_assets.errors import UserError
from po_assets.evaluation.answering import AnsweringModel, load_baseline
from po_assets.evaluation.gate import GATE_FILE
from po_assets.model import BaseModel
from po_assets.model.settings import EMBEDDED_MODEL
from po_assets.product_owner import build_prompt
from po_assets.product_owner.templates import read_prompt
from po_assets.serving import commands
from po_assets.serving.ask import Documents, ask, ask_engine
from po_assets.serving.engine import Generated, ModelEngine, Sampling, load_engine, promotions
from po_assets.serving.server import make_app
from po_assets.storage import Layout
from po_assets_tests.evaluation.scenes import CONCEPT, REQUIREMENTS
from po_assets_tests.evaluation.test_assets import make_adapter
from po_assets_tests.model.tiny_model import make_tiny_model
from po_assets_tests.teacher.scenes import Scene, llm

PROMPT = [{"role": "user", "content": build_prompt(CONCEPT, REQUIREMENTS)}]
HELLO = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny", context=8192)


@pytest.fixture(scope="module")
def answering(tiny: Path) -> AnsweringModel:
    return load_baseline(tiny, BaseModel(base_model=str(tiny)).resolved())


@pytest.fixture
def engine(answering: AnsweringModel) -> ModelEngine:
    return ModelEngine(answering, "tiny")


def generate(engine: ModelEngine, turns: Any = PROMPT, **sampling: Any) -> Any:
    return engine.generate(engine.prepare(turns, Sampling(**sampling)))


def test_a_product_owner_question_is_answered_within_the_grammar(
    engine: ModelEngine, answering: AnsweringModel
) -> None:
    """Even by random weights; without the grammar they keep to no form."""
    done = generate(engine, max_tokens=40)
    assert done.text.startswith("```yaml VISION\nproduct_name: ")
    assert (done.finish_reason, done.completion_tokens) == ("length", 40)
    free = ModelEngine(answering, "tiny", grammar=False)
    assert not generate(free, max_tokens=40).text.startswith("```yaml")
    assert generate(engine, HELLO, max_tokens=40).text == generate(free, HELLO, max_tokens=40).text


@pytest.mark.parametrize(
    ("turns", "sampling"), [(HELLO, Sampling(60)), (PROMPT, Sampling(200, stop=("product_summary",)))]
)
def test_the_pieces_of_an_answer_are_the_answer(engine: ModelEngine, turns: Any, sampling: Sampling) -> None:
    """Whole characters only; it ends before its stop text, of which no piece is told, and when nobody listens."""
    pieces: list[str] = []
    question = engine.prepare(turns, sampling)
    done = engine.generate(question, lambda piece: not pieces.append(piece))
    assert "".join(pieces) == done.text == engine.generate(question).text
    assert len(pieces) > 5
    assert "product_s" not in done.text
    assert done.finish_reason == ("stop" if sampling.stop else "length")
    assert engine.generate(question, lambda _piece: False).completion_tokens < 30


def test_seed_and_temperature_decide_the_draws(engine: ModelEngine) -> None:
    """The same seed draws the same."""
    one, again, other = (generate(engine, HELLO, max_tokens=30, temperature=1.0, seed=seed).text for seed in (1, 1, 2))
    assert one == again != other


def test_what_does_not_fit_the_context_is_refused(engine: ModelEngine) -> None:
    """Nothing is cut without a word."""
    with pytest.raises(UserError, match=r"room for 8,192 \(max_tokens\); together .* model's context of 8,192"):
        engine.prepare(HELLO, Sampling(8192))
    with pytest.raises(UserError, match="more than the model's context"):
        engine.prepare([{"role": "user", "content": "word " * 9000}], Sampling())


def test_a_control_token_in_a_message_is_plain_text(engine: ModelEngine, answering: AnsweringModel) -> None:
    """Nobody ends the user's turn from within it."""
    end = str(answering.chat.tokenizer.eos_token)
    ids = engine.prepare([{"role": "user", "content": f"Hello{end}"}], Sampling(5)).prompt_ids
    plain = engine.prepare([{"role": "user", "content": "Hello"}], Sampling(5)).prompt_ids
    assert ids.count(answering.chat.eos_id) == plain.count(answering.chat.eos_id)


def test_a_missing_student_or_adapter_is_one_sentence_with_the_way_out(tmp_path: Path) -> None:
    """Before any model is loaded."""
    layout = Layout(UPath(tmp_path))
    with pytest.raises(UserError, match=r"no student yet: .*models/current.* take the base model with --base"):
        load_engine(layout)
    with pytest.raises(UserError, match=r"holds no LoRA adapter \(adapter_config.json is missing\)"):
        load_engine(layout, adapter=tmp_path)
    with pytest.raises(UserError, match="exclude each other"):
        load_engine(layout, adapter=tmp_path, base=True)


def test_4_bits_are_asked_for_before_any_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no GPU; the profile's weights have 15 GB."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("po_assets.serving.engine.ensure_base_model", lambda *_: pytest.fail("downloaded"))
    with pytest.raises(UserError, match="The profile 'paper' needs a CUDA GPU"):
        load_engine(Layout(UPath(tmp_path)), base=True, spec=BaseModel(profile="paper"))


def test_the_current_student_answers_unless_another_adapter_is_named(tiny: Path, tmp_path: Path) -> None:
    """Neither answers as the base model; one that was changed or made for another base is refused."""
    layout, other = Layout(UPath(tmp_path)), tmp_path / "other"
    current = Path(str(layout.current))
    make_adapter(tiny, current)
    make_adapter(tiny, other)
    student = load_engine(layout, spec=BaseModel(base_model=str(tiny)))
    named = load_engine(layout, adapter=other, spec=BaseModel(base_model=str(tiny)))
    base = load_engine(layout, base=True, spec=BaseModel(base_model=str(tiny)))
    assert (student.name, named.name, base.name) == ("po-student", "tiny+other", "tiny")
    texts = [generate(one, HELLO, max_tokens=20).text for one in (student, named, base)]
    assert texts[0] == texts[1] != texts[2]
    write_gate(layout.current / GATE_FILE, gate_record("f" * 64, {}))  # another was put in the place of what passed
    with pytest.raises(UserError, match=r"does not hold the adapter that passed the gate \(f{12}\), but [0-9a-f]{12}"):
        load_engine(layout, spec=BaseModel(base_model=str(tiny)))
    (current / "gate.json").unlink()
    with (other / "adapter_config.json").open("a") as file:
        file.write(" ")
    with pytest.raises(UserError, match=r"adapter_config.json .* was changed or damaged"):
        load_engine(layout, adapter=other, spec=BaseModel(base_model=str(tiny)))
    wider = make_tiny_model(tmp_path / "wider", context=8192, seed=1)
    with pytest.raises(UserError, match="was trained on another base model"):
        load_engine(layout, spec=BaseModel(base_model=str(wider)))


def test_the_prompt_that_travels_with_the_adapter_is_asked(tiny: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """System text and template, also where the base model is compared; the grammar finds the question in it."""
    layout = Layout(UPath(tmp_path))
    ours = read_prompt(
        "{% block system %}Guard it.{% endblock %}Idea: {{ concept }}\nSpec: {{ requirements_yaml }}", "ours"
    )
    adapter = Path(str(layout.current))
    make_adapter(tiny, adapter)
    (adapter / "prompt.jinja").write_text(ours.source)
    (adapter / "prompt.json").write_text(json.dumps({"name": "ours", "system": ours.system}))
    spec = BaseModel(base_model=str(tiny))
    assert [load_engine(layout, base=base, spec=spec).prompt for base in (False, True)] == [ours, ours]
    engine, asked = load_engine(layout, spec=spec), []
    monkeypatch.setattr(engine, "prepare", lambda turns, sampling: asked.append(turns) or sampling)
    monkeypatch.setattr(engine, "generate", lambda _: Generated("", "stop", 1, 1, 0.1))
    ask_engine(engine, Documents(CONCEPT, REQUIREMENTS))
    assert asked == [ours.turns(CONCEPT, REQUIREMENTS)]
    monkeypatch.undo()
    grammars = [one.prepare(asked[0], Sampling(9)).grammar for one in (engine, ModelEngine(engine._answering, "x"))]
    assert grammars[0] is not None
    assert "FR002" in grammars[0]
    assert grammars[1] is None


def test_a_promotion_is_seen_once(tiny: Path, tmp_path: Path) -> None:
    """By its digest, which the loaded student names, too; a student that is gone is none."""
    layout, spec = Layout(UPath(tmp_path)), BaseModel(base_model=str(tiny))
    current, versions = Path(str(layout.current)), tmp_path / "models" / "promoted"
    for digest in ("a", "b"):
        make_adapter(tiny, versions / digest, digest=digest * 64)
    current.symlink_to(versions / "a")
    student = load_engine(layout, spec=spec)
    assert student.digest == "a" * 64
    another = promotions(layout, student.digest)
    assert not another()
    current.unlink()
    assert not another()
    current.symlink_to(versions / "b")
    assert another()
    assert not another()
    assert load_engine(layout, spec=spec).digest == "b" * 64


def test_ask_prints_the_answer_and_its_verdict(tiny: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    """A cut answer is not valid, which the exit status says; a question that no answer fits is refused before."""
    from po_assets import cli

    def asked(*arguments: str, concept: str = CONCEPT, requirements: str = REQUIREMENTS) -> tuple[int, Any]:
        (tmp_path / "c.txt").write_text(concept)
        (tmp_path / "r.yaml").write_text(requirements)
        given = arguments or ("--concept", str(tmp_path / "c.txt"), "--requirements", str(tmp_path / "r.yaml"))
        return cli.main(["ask", *given, "--base", "--base-model", str(tiny)]), capsys.readouterr()

    monkeypatch.setattr(commands, "ask", partial(ask, sampling=Sampling(60)))
    monkeypatch.setenv("PO_ARTIFACTS_ROOT", str(tmp_path))
    status, printed = asked()
    assert status == 3
    assert printed.out.startswith("```yaml VISION")
    assert "tiny: not valid, " in printed.err
    assert "- the answer was cut at its token limit" in printed.err
    for faults, said in (
        ({"concept": " \n"}, "concept is blank"),
        ({"requirements": "a: [b"}, "do not parse as YAML"),
        ({"requirements": "title: x"}, "hold no entry with an id or a description"),
    ):
        status, printed = asked(**faults)
        assert (status, said in printed.err) == (1, True)
    assert "Only one of" in asked("--concept", "-", "--requirements", "-")[1].err
    assert "cannot be read: No such file" in asked("--concept", str(tmp_path / "no"), "--requirements", "-")[1].err


@pytest.mark.slow
def test_the_command_serves_a_model_to_a_teacher_batch(tiny: Path, tmp_path: Path) -> None:
    """On a free port; random weights: nothing is accepted, everything is accounted for."""
    scene = Scene(tmp_path, payloads=3)
    command = [sys.executable, "-W", "ignore", "-m", "po_assets.cli", "serve", "--base", "--base-model", str(tiny)]
    options = {"stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([*command, "--port", "0", "--no-grammar"], **options) as process:
        try:
            assert process.stdout
            line = process.stdout.readline()
            assert line.startswith("tiny answers at http://127.0.0.1:")
            report = scene.run(
                llm(line.split(" at ")[1].strip(), model="tiny", max_output_tokens=30, timeout_seconds=120.0)
            )
        finally:
            process.terminate()
    assert (report.payloads, report.given_up, report.requests) == (3, 3, 3)
    assert {row["reason"] for row in scene.ledger} <= {"token limit", "block missing"}


def test_the_embedded_model_answers_over_http(tmp_path: Path) -> None:
    """The real one, converted without a trace of GGUF; to a short request greedy answers are the same, streamed or whole."""
    layout = Layout(UPath(tmp_path))
    served = load_engine(layout, base=True)
    assert served.name == "SmolLM2-135M-Instruct"
    folder = Path(str(layout.base_models / EMBEDDED_MODEL))
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    with safe_open(folder / "model.safetensors", "pt") as weights:
        shapes = [weights.get_slice(name).get_shape() for name in weights.keys()]  # noqa: SIM118 - it is no mapping
    assert sum(map(math.prod, shapes)) == 134_515_008
    question = {"messages": [{"role": "user", "content": "What is the capital of France? One word."}], "max_tokens": 8}
    with TestClient(make_app(served), base_url="http://127.0.0.1") as client:
        whole = client.post("/v1/chat/completions", json=question).json()
        streamed = client.post("/v1/chat/completions", json={**question, "stream": True}).text
    assert "Paris" in whole["choices"][0]["message"]["content"]
    assert "Paris" in streamed
    assert whole["usage"]["prompt_tokens"] > 10
