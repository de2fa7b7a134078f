import json
from pathlib import Path

import torch

from di4c_lm.domains.text.settings import EvalConfig
from di4c_lm.measure.render.publish import publish
from di4c_lm.measure.text.evaluator import Evaluator
from di4c_lm.measure.text.gen_ppl import measure
from di4c_lm.measure.text.gen_ppl_settings import Prompting, Scoring
from tests.measure.tiny import gpt2, letters, words

TOKENIZER = words(*"abcdefg")


def test_the_file_is_that_of_the_interface_and_says_how_it_was_made(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"student")
    tokenizer = letters()
    evaluator = Evaluator(model=gpt2(vocabulary=len(tokenizer)), tokenizer=tokenizer, name="no/folder")
    tokens = torch.randint(2, 9, (9, 6), generator=torch.Generator().manual_seed(0))
    config = EvalConfig(steps=(2,), num_samples=9, bootstrap=20)
    measurement = measure(
        {"student": lambda *_: (tokens, 1.5)},
        tokens,
        tokenizer=TOKENIZER,
        evaluator=evaluator,
        config=config,
        progress=False,
    )
    paths = publish(
        measurement,
        tmp_path / "report",
        settings={"num_samples": 9},
        checkpoints={"student": tmp_path},
        tokenizer=TOKENIZER,
        length=6,
        evaluator=evaluator,
        scoring=Scoring(eos="first"),
        seed=0,
        prompting=Prompting(prompts=3),
    )
    assert paths["json"].name == "gen_ppl_conditional.json"
    found = json.loads(paths["json"].read_text())
    assert found["rows"] == measurement.rows
    assert found["manifest"]["nfe"] == {"data": {"0": 0.0}, "student": {"2": 1.5}}
    assert found["manifest"]["dtypes"] == {"noise": "float64", "model": "torch.float32", "judge": "torch.float64"}
    assert found["manifest"]["prompting"]["prompts"] == 3
    facts = found["manifest"]["judge"]
    assert (facts["name"], facts["reads"], facts["eos"], facts["context"]) == ("no/folder", "text", "first", 16)
