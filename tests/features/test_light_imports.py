"""Reading a configuration or preparing a table must not pay for torch: start-up time is a promise, so it is checked."""

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "scipy", "sklearn", "matplotlib", "pyarrow", "dataframely", "mlflow")


@pytest.mark.parametrize(
    "modules",
    [
        "recsys.contracts.dataset, recsys.contracts.manifest",
        "features.build, features.sources, features.item_embeddings",
        "recsys.semantic_ids.config",
        "pipelines.config, pipelines.cli.app, pipelines.stages",
    ],
)
def test_heavy_libraries_wait_until_they_are_used(modules):
    code = f"import json, sys, {modules}; print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
