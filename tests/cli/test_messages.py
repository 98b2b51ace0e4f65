"""The error line of a wrong flag or config: it names the flag, the value and the likely fix."""

from pathlib import Path

import pytest
from jsonargparse import Namespace
from laws import parse
from tiny import TINY, Refusal

from lit_gpt_scratch.cli.messages import MEANT, explain, known_names, suggestion, with_flags
from lit_gpt_scratch.cli.parsing import read_config
from lit_gpt_scratch.errors import InputError

FIT_MISTAKES = {
    "error: --data.context is 0: it": ["--data.context", "0"],
    "context is -1": ["--data.context", "-1"],
    "context is 3000, but the val split": ["--data.context", "3000"],
    "batch_size is 0": ["--data.batch_size", "0"],
    "sample_size is 0": ["--data.sample_size", "0"],
    "val_fraction is 0.0": ["--data.val_fraction", "0"],
    "test_fraction is 0.95": ["--data.test_fraction", "0.95"],
    "seed is -1": ["--data.seed", "-1"],
    "error: --model.net.width is 0: it": ["--model.net.width", "0"],
    "layers is 0": ["--model.net.layers", "0"],
    "--model.net.attention.heads is 0": ["--model.net.attention.heads", "0"],
    "--model.net.width is 16 and --model.net.attention.heads is 3: heads must divide the width": [
        *("--model.net.attention.heads", "3"),
    ],
    "--model.net.dropout is 1.0": ["--model.net.dropout", "1"],
    "--model.net.attention.dropout is -0.1": ["--model.net.attention.dropout", "-0.1"],
    "dropout is nan": ["--model.net.dropout", ".nan"],
    "model.net.dropout is 'nan'": ["--model.net.dropout", "nan"],
    "--model.optimizer.lr is 0.0": ["--model.optimizer.lr", "0"],
    "weight_decay is -1.0": ["--model.optimizer.weight_decay", "-1"],
    "beta1 is 1.5": ["--model.optimizer.beta1", "1.5"],
    "unexpected keyword argument 'steps'": [
        *("--model.schedule", "torch.optim.lr_scheduler.StepLR"),
        *("--model.schedule.step_size", "5"),
    ],
    "--model.schedule.warmup is 0": ["--model.schedule.warmup", "0"],
    "--trainer.max_steps is 0": ["--trainer.max_steps", "0"],
    "max_steps is -5": ["--trainer.max_steps", "-5"],
    "val_check_interval is 0": ["--trainer.val_check_interval", "0"],
    "accelerator": ["--trainer.accelerator", "abacus"],
    "--name is '../out'": ["--name", "../out"],
    "did you mean data.context?": ["--data.contxt", "3"],
    "did you mean trainer.max_steps?": ["--trainer.max_step", "3"],
    "did you mean model.net.layers?": ["--model.net.layer", "3"],
    "did you mean model.net.attention.heads?": ["--model.net.attention.head", "3"],
    "give torch.optim.AdamW or lit_gpt_scratch.training.AdamW": ["--model.optimizer", "AdamW"],
    "no 'GTP' for model.net: did you mean GPT?": ["--model.net", "lit_gpt_scratch.models.GTP"],
    "no 'Adamw' for model.optimizer: did you mean AdamW?": ["--model.optimizer", "Adamw"],
    "no 'ckpt_pat': did you mean ckpt_path?": ["--ckpt_pat", "last"],
    "no 'max_steps': did you mean trainer.max_steps?": ["--max_steps", "10"],
    "no 'steps': did you mean trainer.max_steps?": ["--steps", "10"],
    "no 'n_layer': did you mean model.net.layers?": ["--n_layer", "2"],
    "no 'layers': did you mean model.net.layers?": ["--layers", "2"],
    "no 'optimizer.lr': did you mean model.optimizer.lr?": ["--optimizer.lr", "0.1"],
    "no 'optimizer': did you mean model.optimizer?": ["--optimizer", "SGD"],
    "no 'lr': did you mean model.optimizer.lr?": ["--lr", "0.1"],
    "no 'gpus': did you mean trainer.devices?": ["--gpus", "1"],
    "no 'epochs': did you mean trainer.max_epochs?": ["--epochs", "1"],
    "no 'batch-size': did you mean data.batch_size?": ["--batch-size", "1"],
    "--data.context: expected one argument": ["--data.context"],
    "-c/--config: expected one argument": ["--config"],
    "no 'trainer.zzzzzz'; --help.trainer lists the options": ["--trainer.zzzzzz", "3"],
    "no 'colour'; --help lists the options": ["--colour", "3"],
    "no 'model.net.width'; --help.model lists": [  # another class has an argument of this name
        *("--model.net", "lit_gpt_scratch.models.Bigram"),
        *("--model.net.width", "3"),
    ],
    "--model.net.attention: this class needs alphabet_size, context. Give one of FusedAttention": [
        *("--model.net.attention", "lit_gpt_scratch.models.GPT"),
    ],
    "`devices` selected": ["--trainer.devices", "many"],
    "`devices` selected with `CPUAccelerator` should be an int > 0": [
        *("--trainer.devices", "-1", "--trainer.accelerator", "cpu"),
    ],
    "pip install -U 'torch_xla": ["--trainer.accelerator", "tpu"],
    "pip install -U 'mlflow": ["--trainer.logger", "MLFlowLogger"],
    "pip install -U 'transformer_engine": ["--trainer.precision", "transformer-engine"],
    "TensorBoardLogger needs save_dir: add --trainer.logger.save_dir=...": [
        *("--trainer.logger", "TensorBoardLogger"),
    ],
    "EarlyStopping needs monitor: add --trainer.callbacks.monitor=...": [
        *("--trainer.callbacks+", "EarlyStopping"),
    ],
    "`mode` can be min, max, got up": [
        *("--trainer.callbacks+", "EarlyStopping", "--trainer.callbacks.monitor", "val/loss"),
        *("--trainer.callbacks.mode", "up"),
    ],
    "there is no module 'elsewhere' in the working directory": [
        "--trainer.callbacks+",
        "elsewhere.Own",
    ],
    "--trainer.val_check_interval is 00:10:00:00: it must be a whole number": [
        *("--trainer.val_check_interval", "00:10:00:00"),
    ],
    "--trainer.check_val_every_n_epoch is -1": ["--trainer.check_val_every_n_epoch", "-1"],
    "--trainer.log_every_n_steps is '1.5': it must be a whole number": [
        *("--trainer.log_every_n_steps", "1.5"),
    ],
    "is not a valid duration": ["--trainer.max_time", "soon"],
    "--trainer.max_steps is '00:01:00': it must be": ["--trainer.max_steps", "00:01:00"],
    "0.0, 1.0] or an int": ["--trainer.limit_val_batches", "-3"],
    "can only be one of ['simple'": ["--trainer.profiler", "stopwatch"],
    "data.context is 'many': it must be": ["--data.context", "many"],
    "data.seed is 'many': it must be": ["--data.seed", "many"],
    "--trainer.precision is '8': it must be 64 or 32 or 16 or transformer-engine or": [
        "--trainer.precision",
        "8",
    ],
    "wandb.mode is 'of': it must be offline or online or disabled": ["--wandb.mode", "of"],
    "--plugin no_such_module": ["--plugin", "no_such_module"],
    "has no file whose name ends in .txt or .txt.gz": ["--data.corpus", "."],
    "no such file": ["--data.corpus", "tiny-shakespear"],
    "only https://": ["--data.corpus", "http://example.org/a.txt"],
    "not 0000": ["--data.sha256", "0000"],
}


@pytest.mark.parametrize("words", FIT_MISTAKES)
def test_a_mistake_in_fit_is_one_line(words: str, refusal: Refusal) -> None:
    assert words in refusal("fit", *TINY, *FIT_MISTAKES[words])


PREDICT_MISTAKES = {
    "temperature is -1.0": ["--temperature", "-1"],
    "--temperature is nan": ["--temperature", ".nan"],
    "temperature is inf": ["--temperature", ".inf"],
    "temperature is 'nan': it must be": ["--temperature", "nan"],
    "temperature is 'hot': it must be": ["--temperature", "hot"],
    "error: --top_k is 0: it": ["--top_k", "0"],
    "top_k is -3": ["--top_k", "-3"],
    "top_p is 0.0": ["--top_p", "0"],
    "top_p is 1.5": ["--top_p", "1.5"],
    "top_p is nan": ["--top_p", ".nan"],
    "min_p is -0.1": ["--min_p", "-0.1"],
    "min_p is 2.0": ["--min_p", "2"],
    "max_new_tokens is 0": ["--max_new_tokens", "0"],
    "num_samples is 0": ["--num_samples", "0"],
    "prompt: character '8' at position 2": ["--prompt", "AB8"],
    "stop: character '8' at position 0": ["--stop", "8"],
    "prompt_file /none.txt cannot be read: No such file": ["--prompt_file", "/none.txt"],
    "prompt and prompt_file are both given": ["--prompt", "A", "--prompt_file", "/none.txt"],
    "change its size": ["--model.net.width", "32"],
}


@pytest.mark.parametrize("words", PREDICT_MISTAKES)
def test_a_mistake_in_predict_is_one_line(words: str, checkpoint: Path, refusal: Refusal) -> None:
    assert words in refusal("predict", "--ckpt_path", checkpoint, *PREDICT_MISTAKES[words])


CONFIGS = {
    "no 'data.contxt': did you mean data.context?": "data:\n  contxt: 4\n",
    "there is no 'modl.net'": "modl:\n  net: 3\n",
    "did you mean trainer.max_steps?": "trainer:\n  max_step: 3\n",
    "data.context is '[1, 2]'": "data:\n  context: [1, 2]\n",
    "config.yaml is not YAML: line 2: ": "data: [1\n",
    "config.yaml: the file is 'just a sentence'. Give flags": "just a sentence",
    "config.yaml: the file is '[1, 2]'. Give flags": "- 1\n- 2\n",
    "config.yaml: the file has data, which is '3'. Give flags": "data: 3\n",
    "config.yaml is not YAML: ": "a: '\x00'\n",
    "config.yaml has too many nested brackets": "[" * 5000,
}


@pytest.mark.parametrize("words", CONFIGS)
def test_a_bad_config_is_one_line(words: str, tmp_path: Path, refusal: Refusal) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(CONFIGS[words], encoding="utf-8")
    assert words in refusal("fit", "--config", config)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("mutli_head", "multi_head"),
        ("configs/mutli_head.yaml", "multi_head"),
        ("gtp_cpu", "gpt_cpu"),
        ("my_confg.yaml", "my_config.yaml"),
        ("own/my_confg.yaml", "own/my_config.yaml"),
        ("own/mutli_head.yaml", "own/multi_head.yaml"),
    ],
)
def test_a_mistyped_config_is_answered_with_the_closest_one(
    name: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of the program, or one beside the file that was meant."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    for file in ("my_config.yaml", "own/my_config.yaml", "own/multi_head.yaml"):
        (tmp_path / file).touch()
    with pytest.raises(InputError) as error:
        read_config(name)
    assert str(error.value) == f"--config {name}: No such file or directory. Did you mean {meant}?"


def test_a_missing_or_binary_config_is_one_line(tmp_path: Path, refusal: Refusal) -> None:
    missing, binary = tmp_path / "none.yaml", tmp_path / "binary.yaml"
    assert f"--config {missing}: No such file" in refusal("fit", "-c", missing)
    assert "Give a file, or a config of the program: bigram, " in refusal("fit", "-c", missing)
    assert f"--config {tmp_path}: " in refusal("fit", "--config", tmp_path)
    binary.write_bytes(b"\x00\xff\xfe")
    assert f"--config {binary} is not a text in UTF-8" in refusal("fit", "--config", binary)
    (tmp_path / "torn.yaml").write_text("data:\n  context: [8,\n", encoding="utf-8")
    torn = refusal("fit", "--config", tmp_path / "torn.yaml")
    assert "torn.yaml is not YAML: line 3: " in torn


@pytest.mark.parametrize(
    ("name", "meant"),
    [("data.contxt", "data.context"), ("contxt", "data.context"), ("GTP", "GPT")],
)
def test_a_typo_is_answered_with_the_closest_name(name: str, meant: str) -> None:
    known = ["data.context", "data.corpus", "model.net", "GPT", "Bigram"]
    assert suggestion(name, known) == f": did you mean {meant}?"
    assert "did you mean" not in suggestion("zzzzzz", known)
    assert "did you mean" not in suggestion(meant, known)


def test_an_unknown_message_is_shown_in_one_line_with_its_key() -> None:
    message = 'Parser key "model.net":\n  Something\n  new. Got value: Namespace(a=1)'
    assert explain(message, []) == "model.net: Something new"
    assert explain("Something\n new", []) == "Something new"


def test_a_value_is_named_by_its_flag_where_there_is_one() -> None:
    net = Namespace(width=8, attention=Namespace(init_args=Namespace(width=8, heads=3)))
    config = Namespace(model=Namespace(net=Namespace(init_args=net)), name="a", seed=None)
    assert with_flags("heads is 3: no", config) == "--model.net.attention.heads is 3: no"
    assert with_flags("name is 'a' and seed is None.", config) == "--name is 'a' and seed is None."
    same_twice = "width is 8: no"
    assert with_flags(same_twice, config) == same_twice
    other_values = "heads is 4, x.heads is 3, the loss is nan"
    assert with_flags(other_values, config) == other_values


def test_every_word_of_others_leads_to_a_flag_that_exists() -> None:
    flags = known_names(parse().parser)
    for word, flag in MEANT.items():
        assert flag in flags
        assert suggestion(word, flags) == f": did you mean {flag}?"
