"""A tiny model with random weights and one token a byte, ready to answer."""

import pytest

from po_assets.evaluation.answering import AnsweringModel
from po_assets.model import ChatTemplate, load_base_model, load_tokenizer
from po_assets_tests.model.tiny_model import make_tiny_model


@pytest.fixture(scope="session")
def answering(tmp_path_factory: pytest.TempPathFactory) -> AnsweringModel:
    folder = make_tiny_model(tmp_path_factory.mktemp("tiny"), context=8192)
    return AnsweringModel(load_base_model(folder, "float32", device="cpu"), ChatTemplate(load_tokenizer(folder)))
