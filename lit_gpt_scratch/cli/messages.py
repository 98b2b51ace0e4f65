"""The parser of the command line, and its error messages: one line with the flag that was meant."""

import inspect
import re
import sys
from argparse import SUPPRESS, Action
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from types import ModuleType
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from lit_gpt_scratch import models, training
from lit_gpt_scratch.cli.flags import PAGES, correct_help, why_no_effect
from lit_gpt_scratch.errors import is_in_user_code, is_out_of_memory
from lit_gpt_scratch.private_api import WRONG_WEIGHTS

# The wording of jsonargparse. A message that matches none of these is shown as it is.
KEY = re.compile(r'Parser key "([^"]+)":')  # twice for model.net.width: "model.net", "width"
UNKNOWN = re.compile(r"(?:arguments: (?:--)?|[Oo]ption '|attribute '|path string: )([^\s='\"]+)")
MISSING_ARGUMENT = re.compile(
    r"given class_path '(?:\w+\.)*(\w+)': the following arguments are required: (\w+)"
)
OTHER_KIND = re.compile(r"the following arguments are required: ([\w, ]+)")
OTHER_CLASS = re.compile(r"Expected '(\S+)' to be a subclass of <class '(?:\w+\.)*(\w+)'>")
SAME_NAME = re.compile(r"Multiple subclasses with name (\w+)\..*?: (.+)$")
NO_MODULE = re.compile(r"[Nn]o module named '(\S+?)'")
WRONG_VALUE = re.compile(
    r"(?:Expected an? |Subtypes: \[)(.+?)(?:\. Got|\] Errors: .* Given) value: (.*?)"
    r"(?:\. Got value: .*)?$"
)

# For each flag, the names that other programs use for it.
WORDS_OF_OTHERS = {
    "ckpt_path": "resume resume_from checkpoint ckpt load init_from",
    "data.batch_size": "bs batch train_batch_size micro_batch_size",
    "data.context": "block_size seq_len seq_length sequence_length context_length max_seq_len",
    "data.corpus": "dataset data_dir input input_file text train_file",
    "model.net.attention.heads": "n_head n_heads num_heads nhead",
    "model.net.layers": "n_layer n_layers num_layers depth",
    "model.net.width": "n_embd d_model hidden_size embedding_size dim",
    "model.optimizer.lr": "learning_rate",
    "model.schedule.warmup": "warmup_steps warmup_iters",
    "name": "run_name experiment experiment_name",
    "seed_everything": "seed random_seed",
    "trainer.accelerator": "device",
    "trainer.accumulate_grad_batches": "gradient_accumulation_steps grad_accum",
    "trainer.default_root_dir": "out_dir output_dir save_dir",
    "trainer.devices": "gpus num_gpus n_gpu",
    "trainer.gradient_clip_val": "grad_clip clip_grad max_grad_norm",
    "trainer.log_every_n_steps": "log_interval log_every",
    "trainer.max_epochs": "epochs num_epochs n_epochs num_train_epochs",
    "trainer.max_steps": "steps max_iters iters num_steps n_steps train_steps",
    "trainer.precision": "dtype",
    "trainer.val_check_interval": "eval_interval eval_every val_interval",
}
MEANT = {word: flag for flag, words in WORDS_OF_OTHERS.items() for word in words.split()}

PACKAGE = __name__.partition(".")[0]
KINDS = {"int": "a whole number", "float": "a number", "bool": "true, false", "str": "text"}
# Key: the last part of a flag. Value: an argument that all classes of this flag take.
KIND_OF_CLASS = {
    "net": "alphabet_size", "attention": "width", "optimizer": "params", "schedule": "optimizer"
}  # fmt: skip


def explain(message: str, known: Sequence[str], plugin: ModuleType | None = None) -> str:
    """Return a message of jsonargparse as one line; for an unknown name, suggest a known one.

    Args:
        known: Flags.
        plugin: The user's module, whose classes are suggested, too.
    """
    text = " ".join(message.replace(' in "<unicode string>"', "").split()).replace(" ,", ",")
    text = re.sub(r"Group '(.+?)' does not accept option '(.+?)'", r"option '\1.\2'", text)
    key = ".".join(KEY.findall(text))
    text = KEY.sub("", text).strip()
    classes = classes_for(key, plugin)
    if problem := MISSING_ARGUMENT.search(text):
        return f"--{key}: {problem[1]} needs {problem[2]}: add --{key}.{problem[2]}=..."
    if classes and (problem := OTHER_KIND.search(text)):
        return f"--{key}: this class needs {problem[1]}. Give one of {', '.join(classes)}."
    if problem := SAME_NAME.search(text):
        paths = problem[2].rstrip(".").split(", ")
        return f"--{key} is {problem[1]}, a name of several classes: give {' or '.join(paths)}."
    if problem := OTHER_CLASS.search(text):
        return f"--{key} is {problem[1]}: it must be a kind of {problem[2]}."
    if problem := NO_MODULE.search(text):
        name = problem[1]
        return (
            f"--{key}: there is no module {name!r} in the working directory or among the installed "
            "packages. Give its file with --plugin."
        )
    if unknown := UNKNOWN.search(text):
        name = unknown[1].rstrip(".")
        if key and name[0].isupper():  # a class, perhaps of a module that the message names
            named = re.findall(rf"([\w.]+)\.{re.escape(name)}\b", text)
            theirs = [p for p in named if p in sys.modules and not p.startswith(f"{PACKAGE}.")]
            own = sys.modules[theirs[0]] if theirs else plugin
            classes = classes_for(key, own)
            by_name = {path.rpartition(".")[2]: path for path in classes}
            close = get_close_matches(name, by_name, 1, 0.5)
            hint = f": did you mean {by_name[close[0]]}?" if close else "."
            listed = f" There are {', '.join(classes)}." if classes else ""
            return f"there is no {name!r} for {key}{hint}{listed}"
        name = f"{key}.{name}" if key else name
        return f"there is no {name!r}{suggestion(name, known)}"
    if wrong := WRONG_VALUE.search(text):
        allowed = re.sub(r"<class '(?:\w+\.)*(\w+)'>|typing\.Literal\[(.+?)\]", r"\1\2", wrong[1])
        values = allowed.replace("NoneType", "null").replace("'", "").split(", ")
        allowed = " or ".join(dict.fromkeys(values))  # each once: precision has 16 and "16"
        allowed = re.sub(r"\b(int|float|bool|str)\b", lambda kind: KINDS[kind[0]], allowed)
        return f"--{key} is {wrong[2]!r}: it must be {allowed}."
    text = re.sub(r"Type <class '\S+'> expects a function or a callable class: ", "", text)
    text = text.partition(". Got value: ")[0].strip()
    return f"{key}: {text}" if key else text


def explain_failure(error: BaseException) -> str | None:
    """Return what to do about an error that flags have caused inside PyTorch; None: no advice."""
    if is_out_of_memory(error):
        return (
            "there is not enough memory: reduce --data.batch_size, --data.context or "
            "--model.net.width; for predict, --max_new_tokens or --num_samples. "
            f"PyTorch says: {str(error)[:200] or 'MemoryError'}"
        )
    if WRONG_WEIGHTS in str(error) and not is_in_user_code(error):
        return (
            "the checkpoint's weights do not fit this network: leave out flags and configs that "
            "change its size (--model.net, --data.context)."
        )
    return None


def with_flags(message: str, config: Mapping[str, Any] | Namespace) -> str:
    """Replace "width is 0" by "--model.net.width is 0" if one flag has this name and value."""
    flags = {key.replace(".init_args", ""): value for key, value in config.items()}

    def name_flag(found: re.Match[str]) -> str:
        name, text = found.groups()
        named = {key: value for key, value in flags.items() if key.rpartition(".")[2] == name}
        equal = [key for key, value in named.items() if text in (str(value), repr(value))]
        return f"--{equal[0]} is {text}" if len(equal) == 1 else found[0]

    return re.sub(r"(?<![\w.])(\w+) is ([^\s:,]+)", name_flag, message)


def suggestion(name: str, known: Sequence[str]) -> str:
    """Suggest a known name.

    It has the same meaning in another program, or the same last part, or a similar spelling.
    """
    by_last_part = {word.rpartition(".")[2]: word for word in reversed(known)}
    last_part = name.rpartition(".")[2]
    same = (MEANT.get(last_part.replace("-", "_"), ""), by_last_part.get(last_part, ""))
    close = [flag for flag in same if flag in known and flag != name]
    close = close or get_close_matches(name, known, 1, 0.7)
    close = close or [by_last_part[s] for s in get_close_matches(last_part, by_last_part, 1, 0.6)]
    if close and close[0] != name:  # the same name is an argument of another class
        return f": did you mean {close[0]}?"
    group = name.partition(".")[0]
    page = f"--help.{group}" if group in PAGES else "--help"
    return f"; {page} lists the options."


def known_names(parser: Any) -> list[str]:
    """Return the flags that have an effect, with those of this package's classes."""
    flags = LightningArgumentParser.get_defaults(parser).keys()  # with the arguments of classes
    names = [flag.replace(".init_args", "").removesuffix(".class_path") for flag in flags]
    return [name for name in names if not why_no_effect(parser.command, name)]


def classes_for(key: str, plugin: ModuleType | None = None) -> list[str]:
    """Return the classes that a flag can name: this package's, then those of the user's module."""
    argument = KIND_OF_CLASS.get(key.rpartition(".")[2])
    modules = {"": models, " ": training} | ({f"{plugin.__name__}.": plugin} if plugin else {})
    found = []
    for prefix, module in modules.items():
        names = getattr(module, "__all__", vars(module))
        for name, value in ((name, getattr(module, name)) for name in names):
            is_own = module is not plugin or getattr(value, "__module__", "") == plugin.__name__
            if isinstance(value, type) and is_own and takes(value, argument):
                found.append(f"{prefix.strip()}{name}")
    return found


def takes(kind: type, argument: str | None) -> bool:
    """Return whether a class is built with an argument, and is not of a larger kind.

    Blocks and networks have a width, too, and the Lightning module has an optimizer.
    """
    names = inspect.signature(kind).parameters
    larger = {"width": {"alphabet_size", "attention"}, "optimizer": {"net"}}
    return argument in names and larger.get(argument or "", set()).isdisjoint(names)


class Parser(LightningArgumentParser):
    """Lightning's parser, with other defaults for classes, and another help."""

    command = "fit"
    page: str | None = None  # the page of the help; None: the first one

    def get_defaults(self, *args: Any, **kwargs: Any) -> Any:
        """Return the defaults without the arguments of default classes; jsonargparse adds those.

        Otherwise a class would get values of the default class that it replaces: AdamW Muon's lr.
        """
        config = super().get_defaults(*args, **kwargs)
        for key in [*config.keys()]:
            name = key.removesuffix(".class_path")
            names_a_class = name != key and ".init_args." not in name
            if names_a_class and "init_args" not in self.get_default(name):
                config[name].pop("init_args", None)
        return config

    def format_help(self, *args: Any) -> str:
        """List the options of one page, and only those that have an effect in the command."""
        correct_help(self, self.command, self.page)
        return super().format_help(*args)


class HelpPage(Action):
    """`--help.trainer`, for example: print a page of the help, and exit."""

    def __init__(self, option_strings: Sequence[str], **_: Any) -> None:
        super().__init__(option_strings, SUPPRESS, nargs=0, default=SUPPRESS, help=SUPPRESS)

    def __call__(self, parser: Any, *values_and_option: Any) -> None:
        parser.page = values_and_option[-1].removeprefix("--help.")
        parser.print_help()
        parser.exit()
