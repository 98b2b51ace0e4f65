"""Tests of `untrusted.py`: values and files that are not harmless plain data are refused."""

import pickle
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from malicious_pickles import GADGETS, RunsCommand
from refusals import assert_refused, predict

from lit_gpt_scratch import inspection
from lit_gpt_scratch.checkpoints.formats import read_checkpoint
from lit_gpt_scratch.checkpoints.untrusted import MAX_DEPTH, require_plain
from lit_gpt_scratch.cli.commands import CharCLI
from lit_gpt_scratch.errors import InputError

# Values in memory


def nest(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("key", [(1, 2), 1.5, None, b"x", True])
def test_dictionary_keys_other_than_texts_and_integers_are_refused(key: Any) -> None:
    with pytest.raises(ValueError, match="keys"):
        require_plain({"a": [{key: 1}]}, size=0)
    require_plain({"a": [{"b": 1, 2: None}]}, size=0)


def test_only_pytorchs_attribute_of_a_dictionary_is_accepted() -> None:
    weights: Any = OrderedDict(a=torch.ones(2))
    weights._metadata = {}
    require_plain(weights, size=2)
    weights.other = 1
    with pytest.raises(ValueError, match="attributes"):
        require_plain(weights, size=2)


def test_tensors_must_not_be_larger_than_the_file() -> None:
    require_plain([torch.ones(3), torch.ones(4)], size=7)
    for value, size in (([torch.ones(3), torch.ones(5)], 7), (torch.ones(0), -1)):
        with pytest.raises(ValueError, match="tensors"):
            require_plain(value, size)


def test_nesting_is_limited() -> None:
    require_plain(nest(MAX_DEPTH), size=0)
    with pytest.raises(ValueError, match="too deep"):
        require_plain(nest(MAX_DEPTH + 1), size=0)


# Pickled code


@pytest.mark.parametrize("gadget", GADGETS)
@pytest.mark.parametrize("place", ["hyper_parameters", "state_dict", "callbacks", "alone", "raw"])
def test_pickled_code_is_refused_and_never_run(
    path: Path, tmp_path: Path, gadget: type[RunsCommand], place: str
) -> None:
    """In any part of a valid checkpoint, as a file's only object, and as a bare pickle."""
    marker = tmp_path / "marker"
    contents: Any = gadget(marker)
    if place not in ("alone", "raw"):
        contents = torch.load(path, weights_only=True)
        contents[place]["gadget"] = gadget(marker)
    if place == "raw":
        path.write_bytes(pickle.dumps(contents))
    else:
        torch.save(contents, path)
    assert_refused(path, "is refused: it holds pickled code")
    assert not marker.exists()
    if place == "raw":
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert marker.exists(), "the gadget is harmless, so this test shows nothing"


# Class paths

HARMFUL = [
    "os.system",
    "torch.nn.Linear",
    "lit_gpt_scratchy.models.GPT",
    "lit_gpt_scratch",
    # In the package's namespace, but defined elsewhere.
    "lit_gpt_scratch.data.corpus.os.system",
    "lit_gpt_scratch.models.nn.Linear",
    "lit_gpt_scratch.files.shutil.rmtree",
    "lit_gpt_scratch.checkpoints.formats.Path",
    # In the package, but not a class.
    "lit_gpt_scratch.checkpoints.plugins.import_plugin",
]


def spec(class_path: str) -> dict[str, Any]:
    return {"class_path": class_path, "init_args": {}}


@pytest.mark.parametrize("class_path", HARMFUL)
@pytest.mark.parametrize("place", ["net", "attention", "optimizer", "schedule"])
def test_a_class_from_elsewhere_is_refused(edited: Any, place: str, class_path: str) -> None:
    def edit(contents: dict[str, Any]) -> None:
        model = contents["hyper_parameters"]
        (model["net"]["init_args"] if place == "attention" else model)[place] = spec(class_path)

    assert_refused(edited(edit), "which is not part of lit_gpt_scratch")


@pytest.mark.parametrize(
    "disguise",
    [
        "os.system",
        "torch.nn.Linear",
        '{"class_path": "os.system", "init_args": {"command": "echo"}}',
        "class_path: os.system",
    ],
)
@pytest.mark.parametrize("place", ["net", "attention", "optimizer", "schedule"])
def test_a_text_in_place_of_a_class_is_refused(edited: Any, place: str, disguise: str) -> None:
    """jsonargparse would read a text as a class path or as YAML."""

    def edit(contents: dict[str, Any]) -> None:
        model = contents["hyper_parameters"]
        (model["net"]["init_args"] if place == "attention" else model)[place] = disguise

    assert_refused(edited(edit), "refused|not part of lit_gpt_scratch")


@pytest.mark.parametrize(
    "teacher", [r"\\host\share\a.ckpt", "//host/a.ckpt", "s3://bucket/a.ckpt", 5, ["a.ckpt"]]
)
def test_a_teacher_must_be_on_this_machine(edited: Any, teacher: Any) -> None:
    path = edited(lambda c: c["hyper_parameters"].update(teacher=teacher))
    assert_refused(path, "its teacher is not the path of a file on this machine")


def test_a_path_of_a_teacher_is_no_class_elsewhere(edited: Any) -> None:
    path = edited(lambda c: c["hyper_parameters"].update(teacher="os.system"))
    assert read_checkpoint(path)["hyper_parameters"]["teacher"] == "os.system"
    path = edited(lambda c: c["hyper_parameters"]["net"]["init_args"].update(teacher="os.system"))
    assert_refused(path, "'os.system', which is not part of lit_gpt_scratch")


def test_a_class_in_a_list_is_refused(edited: Any) -> None:
    more = [[spec("os.system")]]
    path = edited(lambda c: c["hyper_parameters"]["net"]["init_args"].update(more=more))
    assert_refused(path, "'os.system', which is not part of lit_gpt_scratch")


@pytest.mark.parametrize("read", [inspection.load, predict])
@pytest.mark.parametrize("place", ["net", "optimizer", "schedule"])
def test_a_command_named_in_a_checkpoint_is_never_run(
    edited: Any, tmp_path: Path, place: str, read: Callable[[Path], Any]
) -> None:
    """A module of the package imports `os`, so this class path begins with the package's name."""
    marker = tmp_path / "marker"
    arguments = {"command": f"echo run > {marker}"}
    call = {"class_path": "lit_gpt_scratch.data.corpus.os.system", "init_args": arguments}
    path = edited(lambda contents: contents["hyper_parameters"].update({place: call}))
    with pytest.raises((InputError, SystemExit)):
        read(path)
    assert not marker.exists()


@pytest.mark.parametrize("part", ["hyper_parameters", "datamodule_hyper_parameters"])
@pytest.mark.parametrize("value", ["os.system", "lightning.pytorch.cli.instantiate_class", 7])
def test_another_instantiator_is_refused(edited: Any, part: str, value: Any) -> None:
    path = edited(lambda contents: contents[part].update(_instantiator=value))
    assert_refused(path, "is refused: it names code of its own")


@pytest.mark.parametrize("part", ["hyper_parameters", "datamodule_hyper_parameters"])
@pytest.mark.parametrize("value", ["os.system", "lit_gpt_scratch.training.module.LitCharLM"])
def test_another_module_class_is_refused(edited: Any, part: str, value: str) -> None:
    """Lightning would build the class that `_class_path` names instead of LitCharLM."""
    path = edited(lambda contents: contents[part].update(_class_path=value))
    assert_refused(path, "is refused: it names code of its own")


# Values that are not those of a checkpoint


@pytest.mark.parametrize(
    "weight",
    [
        torch.tensor([1.0, torch.nan]),
        torch.tensor([torch.inf]),
        "a text",
        None,
    ],
    ids=["NaN", "infinity", "a text", "nothing"],
)
def test_weights_that_are_not_finite_numbers_are_refused(edited: Any, weight: Any) -> None:
    path = edited(lambda contents: contents["state_dict"].update({"net.x": weight}))
    assert_refused(path, "not all finite")


RECURSIVE: list[Any] = []
RECURSIVE.append(RECURSIVE)
SHARED: list[Any] = []
for _ in range(60):
    SHARED = [SHARED, SHARED]
DEEP: list[Any] = []
for _ in range(200):
    DEEP = [DEEP]
NOT_PLAIN = {
    "a tensor of more numbers than the file has bytes": torch.ones(1).expand(1 << 14, 1 << 14),
    "a tensor without memory": torch.ones(2, device="meta"),
    "a sparse tensor": torch.eye(3).to_sparse(),
    "a list in itself": RECURSIVE,
    "a list that unfolds to 2**60": SHARED,
    "a deep list": DEEP,
    "a key of tuples": {((1, 2), 3): 4},
    "bytes": b"bytes",
    "a set": {1, 2},
    "a huge number": 1 << 63,
    "a class": torch.nn.Linear,
}


@pytest.mark.parametrize("value", NOT_PLAIN.values(), ids=NOT_PLAIN)
@pytest.mark.parametrize(
    "place", ["state_dict", "hyper_parameters", "callbacks", "loops", "unlogged"]
)
def test_values_that_are_not_plain_data_are_refused_in_every_part(
    edited: Any, place: str, value: Any
) -> None:
    def edit(contents: dict[str, Any]) -> None:
        if place == "unlogged":
            contents[place] = value
        else:
            contents[place]["x"] = value

    assert_refused(edited(edit), "is refused: it")


def rezip(path: Path, **how: Any) -> None:
    """Write the records of an archive to a new one."""
    with zipfile.ZipFile(path) as old:
        records = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", **how) as new:
        for name, record in records.items():
            new.writestr(name, record)


def test_a_rewritten_archive_is_accepted(path: Path) -> None:
    rezip(path)
    read_checkpoint(path)


def test_compressed_records_are_refused(path: Path) -> None:
    """A megabyte could unpack to a gigabyte."""
    rezip(path, compression=zipfile.ZIP_DEFLATED)
    assert_refused(path, "damaged")


def test_two_records_of_one_name_are_refused(path: Path) -> None:
    """Two readers could read different ones."""
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/DATA.pkl", b"")
    assert_refused(path, "damaged")


def test_older_file_formats_are_refused(path: Path, fit: CharCLI) -> None:
    """PyTorch reads legacy files and tar archives with other code."""
    contents = torch.load(path, weights_only=True)
    torch.save(contents, path, _use_new_zipfile_serialization=False)
    assert_refused(path, "not a checkpoint")
    with tarfile.open(path, "w") as archive:
        archive.add(fit.folder / "config.yaml", "pickle")
    assert_refused(path, "not a checkpoint")


@pytest.mark.parametrize("kind", ["momentum_buffer", "exp_avg"])
def test_a_flipped_bit_in_a_number_is_refused(path: Path, kind: str) -> None:
    """PyTorch does not compare the archive's checksums."""
    states = torch.load(path, weights_only=True)["optimizer_states"][0]["state"].values()
    number = next(state[kind] for state in states if kind in state)
    damaged = path.read_bytes()
    at = damaged.index(number.numpy().tobytes())
    path.write_bytes(damaged[:at] + bytes([damaged[at] ^ 1]) + damaged[at + 1 :])
    assert_refused(path, "damaged")


def run_loops(contents: dict[str, Any], **values: Any) -> None:
    loops = contents["loops"]["fit_loop"]
    loops["epoch_loop.batch_progress"]["total"].update(values)


@pytest.mark.parametrize("value", [-1, "6", 1.5, None, torch.ones(1), 1 << 62])
def test_loop_states_that_are_not_counts_are_refused(edited: Any, value: Any) -> None:
    """Otherwise training could continue at another step, or never end."""
    assert_refused(edited(lambda c: run_loops(c, ready=value)), "step counters are not all counts")


@pytest.mark.parametrize("value", [{}, [], {"ready": 1}])
def test_an_epoch_counter_that_is_no_number_is_refused(edited: Any, value: Any) -> None:
    """Training would use it at the end of an epoch, and fail there with a traceback."""

    def edit(contents: dict[str, Any]) -> None:
        contents["loops"]["fit_loop"]["epoch_progress"]["total"]["processed"] = value

    assert_refused(edited(edit), "not all counts")


@pytest.mark.parametrize("step", [0, 3, 5])
def test_a_global_step_that_differs_from_the_loops_is_refused(edited: Any, step: int) -> None:
    assert_refused(edited(lambda c: c.update(global_step=step)), "step counters disagree")


@pytest.mark.parametrize(
    "other", ["runs/../notes.txt", "..", "s3://bucket/key", "simplecache::/notes.txt", "data:text"]
)
def test_a_callback_state_that_names_another_file_is_refused(edited: Any, other: str) -> None:
    """Lightning's ModelCheckpoint deletes the files that its state names."""
    path = edited(lambda c: c["callbacks"].update(ModelCheckpoint={"best_model_path": other}))
    assert_refused(path, "it names files outside its run")


@pytest.mark.parametrize("other", ["v1..2/best.ckpt", "/home/me/a...b/best.ckpt"])
def test_a_callback_state_may_name_a_folder_with_dots(edited: Any, other: str) -> None:
    path = edited(lambda c: c["callbacks"].update(ModelCheckpoint={"best_model_path": other}))
    assert read_checkpoint(path)["callbacks"]["ModelCheckpoint"]["best_model_path"] == other


def test_a_callback_state_may_hold_a_long_tensor(edited: Any) -> None:
    """The text of a long tensor contains `...`, which must not be taken for a parent folder."""
    kept = torch.arange(5000.0)
    path = edited(lambda c: c["callbacks"].update(Mine={"seen": kept}))
    assert torch.equal(read_checkpoint(path)["callbacks"]["Mine"]["seen"], kept)


@pytest.mark.parametrize("value", [None, 1.5, ["x"]])
def test_a_callback_path_that_is_not_text_is_refused(edited: Any, value: Any) -> None:
    def edit(contents: dict[str, Any]) -> None:
        contents["callbacks"]["ModelCheckpoint"] = {"best_model_path": value}

    assert_refused(edited(edit), "path that is not text")


@pytest.mark.parametrize("name", ["net", "optimizer", "_instantiator"])
@pytest.mark.parametrize("value", [torch.ones(0), torch.ones(3)], ids=["empty", "full"])
def test_a_tensor_in_the_settings_is_refused(edited: Any, name: str, value: Any) -> None:
    assert_refused(edited(lambda c: c["hyper_parameters"].update({name: value})), "hold a tensor")


@pytest.mark.parametrize("place", ["net", "optimizer", "schedule", "attention"])
def test_a_word_that_is_also_a_file_name_is_refused(
    edited: Any, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """jsonargparse would read the file as a config, which can name any class."""
    monkeypatch.chdir(tmp_path)
    Path("planted").write_text(
        "class_path: os.system\ninit_args:\n  command: echo", encoding="utf-8"
    )

    def edit(contents: dict[str, Any]) -> None:
        model = contents["hyper_parameters"]
        (model["net"]["init_args"] if place == "attention" else model)[place] = "planted"

    path = edited(edit)
    assert_refused(path, "is refused")
    assert_refused(path, "is refused", plugin="json")


def test_a_global_step_that_is_not_a_number_is_refused(edited: Any) -> None:
    path = edited(lambda contents: contents.update(global_step=[1]))
    assert_refused(path, "global_step is not a whole number")
