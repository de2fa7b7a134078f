from tests.tools.helpers import run_tool

TINY = [
    "model.width=8",
    "model.res_blocks=1",
    "model.multipliers=[1]",
    "teacher.pretrain.steps=2",
    "train.steps=2",
    "train.micro_batch_size=2",
    "eval.steps=[2]",
    "eval.seeds=[0]",
]


def test_a_line_for_each_model_and_exact_samples_beside() -> None:
    done = run_tool("check_image_law", "size=3", "levels=2", "images=50", "samples=60", *TINY)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = {
        line.split()[0]: line.split()[1:]
        for line in done.stdout.splitlines()
        if line.startswith(("teacher", "student"))
    }
    assert set(rows) == {"teacher", "student"}, done.stdout
    for steps, seed, variation, exact, _, p_value, _ in rows.values():
        assert (steps, seed) == ("2", "0")
        assert 0 < float(exact) < 1 and float(exact) / 2 < float(variation) <= 1 and 0 < float(p_value) <= 1


def test_bad_input_ends_with_status_2() -> None:
    for wrong in ("model.width=6", "levels=few"):
        done = run_tool("check_image_law", wrong)
        assert done.returncode == 2 and wrong.partition("=")[0] in done.stderr
