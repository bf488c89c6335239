"""The data half on the sample data gives the same bytes as ever: a rebuilding that changes one shows it here."""

import hashlib
from pathlib import Path

import dagster as dg
import pytest

from po_assets.definitions import defs

SAMPLES = Path(__file__).resolve().parents[1] / "artifacts"
GOLDEN = {
    "po_teacher_dataset": "de7ba9ab671642cdd7061107f5de1501b8652b11e72b6e113b1cad1666b7f3e0",
    "po_teacher_normalized": "ec00479cff3598c7020c0bd6a032929e94178f980dca3cbdb72784f2b0655a95",
    "po_teacher_ledger": "9fbbad28b4c121dda1af3b8d250794694725df47e981cee44c93a6b6c5476433",
    "po_teacher_rejected": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "po_teacher_supervised": "d35de18aed93ed77e01a078b14c106700cb9c9d38a2f44285105c75dd17234e9",
}


@pytest.fixture(scope="module")
def distillation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tables of a run of the data half, with the embedded model's tokenizer."""
    root = tmp_path_factory.mktemp("golden")
    for name in ("incoming", "evaluation"):
        (root / name).symlink_to(SAMPLES / name)
    job = defs.resolve_job_def("product_owner_student")
    run_config = {"resources": {"artifacts": {"config": {"root": str(root)}}}}
    selected = ["raw_teacher", "normalized_teacher", "eval_cases", "supervised_dataset"]
    with dg.DagsterInstance.ephemeral() as instance:
        result = job.execute_in_process(
            run_config=run_config, instance=instance, asset_selection=[dg.AssetKey(name) for name in selected]
        )
    assert result.success
    return root / "distillation"


@pytest.mark.parametrize("table", GOLDEN)
def test_the_tables_are_those_of_always(distillation: Path, table: str) -> None:
    """Byte for byte."""
    assert hashlib.sha256((distillation / f"{table}.jsonl").read_bytes()).hexdigest() == GOLDEN[table]
